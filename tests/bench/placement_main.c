#include "tests/bench/placement.h"

int main(void)
{
    return bench_placement() ? 0 : 1;
}
