#include "tests/unit/planner/arithmetic.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static double sum(const char **at);

static double factor(const char **at)
{
    if (**at == '(') {
        (*at)++;
        double value = sum(at);
        assert_int_equal(**at, ')');
        (*at)++;
        return value;
    }
    char *end;
    double value = strtod(*at, &end);
    if (end == *at)
        fail_msg("no number at \"%s\"", *at);
    *at = end;
    return value;
}

static double product(const char **at)
{
    double value = factor(at);
    while (**at == '*' || **at == '/') {
        char sign = *(*at)++;
        double other = factor(at);
        value = sign == '*' ? value * other : value / other;
    }
    return value;
}

static double sum(const char **at)
{
    double value = product(at);
    while (**at == '+' || **at == '-') {
        char sign = *(*at)++;
        double other = product(at);
        value = sign == '+' ? value + other : value - other;
    }
    return value;
}

double arithmetic_value(const char *text)
{
    double value = sum(&text);
    if (*text)
        fail_msg("left over: \"%s\"", text);
    return value;
}
