/* batonctl completion: scripts that ask `batonctl __complete` what can come next. */
#include <stdio.h>
#include <string.h>

#include "deploy/batonctl/verbs.h"

/* bash takes '=' for a word of its own, and puts a candidate in place of what is after it. */
static const char bash[] =
    "# batonctl completion for bash: source <(batonctl completion bash)\n"
    "_batonctl() {\n"
    "    local word words=() glue= line cur files=\n"
    "    for word in \"${COMP_WORDS[@]:1:COMP_CWORD}\"; do\n"
    "        if [[ $word == = && ${#words[@]} -gt 0 ]]; then\n"
    "            words[${#words[@]}-1]+='='; glue=1\n"
    "        elif [[ $glue ]]; then\n"
    "            words[${#words[@]}-1]+=$word; glue=\n"
    "        else\n"
    "            words+=(\"$word\")\n"
    "        fi\n"
    "    done\n"
    "    cur=${words[${#words[@]}-1]}\n"
    "    COMPREPLY=()\n"
    "    while IFS= read -r line; do\n"
    "        line=${line%%$'\\t'*}\n"
    "        case $line in\n"
    "        :files) files=-f ;;\n"
    "        :dirs) files=-d ;;\n"
    "        *=) compopt -o nospace 2>/dev/null; COMPREPLY+=(\"$line\") ;;\n"
    "        *) [[ $cur == *=* ]] && line=${line#*=}; COMPREPLY+=(\"$line\") ;;\n"
    "        esac\n"
    "    done < <(\"${COMP_WORDS[0]}\" __complete -- \"${words[@]}\" 2>/dev/null)\n"
    "    if [[ $files ]]; then\n"
    "        compopt -o filenames 2>/dev/null\n"
    "        while IFS= read -r line; do COMPREPLY+=(\"$line\"); done \\\n"
    "            < <(compgen \"$files\" -- \"${cur#*=}\")\n"
    "    fi\n"
    "}\n"
    "complete -F _batonctl batonctl\n";

static const char zsh[] =
    "#compdef batonctl\n"
    "# batonctl completion for zsh: source <(batonctl completion zsh), or as _batonctl in $fpath\n"
    "_batonctl() {\n"
    "    local line value\n"
    "    local -a values open\n"
    "    for line in \"${(@f)$(\"${words[1]}\" __complete -- \"${(@)words[2,CURRENT]}\" "
    "2>/dev/null)}\"; do\n"
    "        value=${${line%%$'\\t'*}//:/\\\\:}\n"
    "        case $line in\n"
    "        '') ;;\n"
    "        :files) compset -P '*='; _files ;;\n"
    "        :dirs) compset -P '*='; _files -/ ;;\n"
    "        *=$'\\t'*) open+=(\"$value:${line#*$'\\t'}\") ;;\n"
    "        *) values+=(\"$value:${line#*$'\\t'}\") ;;\n"
    "        esac\n"
    "    done\n"
    "    (( $#values )) && _describe batonctl values\n"
    "    (( $#open )) && _describe batonctl open -S ''\n"
    "}\n"
    "if [[ $funcstack[1] == _batonctl ]]; then\n"
    "    _batonctl \"$@\"\n"
    "else\n"
    "    compdef _batonctl batonctl\n"
    "fi\n";

static const char fish[] = "# batonctl completion for fish: batonctl completion fish | source\n"
                           "function __batonctl_complete\n"
                           "    set -l words (commandline -opc) (commandline -ct)\n"
                           "    for line in ($words[1] __complete -- $words[2..-1] 2>/dev/null)\n"
                           "        switch $line\n"
                           "            case :files :dirs\n"
                           "                __fish_complete_path (commandline -ct)\n"
                           "            case '*'\n"
                           "                echo $line\n"
                           "        end\n"
                           "    end\n"
                           "end\n"
                           "complete -c batonctl -f -a '(__batonctl_complete)'\n";

static const struct {
    const char *shell, *script;
} scripts[] = {{"bash", bash}, {"zsh", zsh}, {"fish", fish}};

int ctl_verb_completion(int argc, char **argv)
{
    int output, used;
    const struct bt_option options[] = {CTL_OUTPUT_OPTION(output), {0}};
    static const char usage[] =
        "batonctl completion bash|zsh|fish\n\n"
        "  source <(batonctl completion bash)\n"
        "  batonctl completion zsh > ~/.zfunc/_batonctl\n"
        "  batonctl completion fish > ~/.config/fish/completions/batonctl.fish\n\n"
        "Verbs, flags, choices and files are completed, and by a short question to the cluster "
        "the\n"
        "names of what runs.";
    int code = ctl_parse(options, usage, argc, argv, &used);
    if (code >= 0)
        return code;
    for (size_t i = 0; used + 1 == argc && i < sizeof(scripts) / sizeof(scripts[0]); i++) {
        if (strcmp(argv[used], scripts[i].shell) != 0)
            continue;
        if (output == CTL_OUTPUT_JSON)
            return ctl_print_json(
                json_pack("{s:s,s:s}", "shell", scripts[i].shell, "script", scripts[i].script));
        fputs(scripts[i].script, stdout);
        return CTL_EXIT_OK;
    }
    fprintf(stderr, "batonctl completion: name one shell: bash, zsh or fish\n");
    return CTL_EXIT_USAGE;
}
