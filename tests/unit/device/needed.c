/* A library that is not there when a program starts. */
int needed_function(void);
int needed_function(void)
{
    return 1;
}
