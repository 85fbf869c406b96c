/* Linked with all of one layer: a symbol of a layer below it would be missing. */
int main(void)
{
    return 0;
}
