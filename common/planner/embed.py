"""embed.py IN.json OUT.c: the catalogue as C."""
import json
import pathlib
import sys

text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
json.loads(text)
data = text.encode() + b"\0"
rows = "".join("\n    " + "".join(f"{byte}," for byte in data[at:at + 20]) for at in range(0, len(data), 20))
pathlib.Path(sys.argv[2]).write_text(f"""#include "common/planner/accelerators.h"

const char bt_plan_accelerators[] = {{{rows}
}};
""", encoding="utf-8")
