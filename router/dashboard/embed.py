"""embed.py PAGE.html PAGE.css PAGE.js OUT.c: one HTML page as C, and the policy that fits it."""
import base64
import hashlib
import pathlib
import sys


def sha256(text):
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def fill(page, tag, text):
    if f"</{tag}" in text.lower() or page.count(f"<{tag}></{tag}>") != 1:
        raise SystemExit(f"embed.py: {tag} does not fit into the page")
    return page.replace(f"<{tag}></{tag}>", f"<{tag}>{text}</{tag}>")


def policy(css, js):
    return "; ".join([
        "default-src 'none'", "style-src " + sha256(css), "script-src " + sha256(js),
        "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'",
        "frame-ancestors 'none'"])


def main():
    html, css, js = (pathlib.Path(name).read_text(encoding="utf-8") for name in sys.argv[1:4])
    page = fill(fill(html, "style", css), "script", js).encode()
    etag = hashlib.sha256(page).hexdigest()[:32]
    rows = "".join("\n    " + "".join(f"{byte}," for byte in page[at:at + 20])
                   for at in range(0, len(page), 20))
    pathlib.Path(sys.argv[4]).write_text(f"""#include "router/dashboard/page.h"

const unsigned char rt_dashboard_page[] = {{{rows}
}};
const size_t rt_dashboard_page_size = sizeof rt_dashboard_page;
const char rt_dashboard_policy[] = "{policy(css, js)}";
const char rt_dashboard_etag[] = "\\"{etag}\\"";
""", encoding="utf-8")


main()
