/* The value of "2*(3+4)/1.5e3": numbers, + - * / and parentheses. Fails the test for other text. */
#ifndef BATON_TESTS_UNIT_PLANNER_ARITHMETIC_H
#define BATON_TESTS_UNIT_PLANNER_ARITHMETIC_H

double arithmetic_value(const char *text);

#endif
