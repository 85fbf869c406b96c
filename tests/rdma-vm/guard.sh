# Run inside a guest before anything else: the software device must be up and UCX must see rc_verbs
# on it, so that what follows can't pass over something else.
link() { cat /sys/class/infiniband/rxe0/ports/1/state 2>/dev/null; }
for i in $(seq 300); do
    case $(link) in *ACTIVE*) break ;; esac
    sleep 0.1
done
case $(link) in
*ACTIVE*) echo "guard: rxe0 is $(link)" ;;
*) echo "guard: rxe0 is '$(link)', not ACTIVE"; exit 1 ;;
esac
ibv_devinfo -d rxe0 | grep -q 'PORT_ACTIVE' || { echo 'guard: libibverbs sees no active rxe0'; exit 1; }
ucx_info -d | awk '/Transport: rc_verbs/ {rc = 1} rc && /Device: rxe0:1/ {found = 1} END {exit !found}' ||
    { echo 'guard: UCX offers no rc_verbs on rxe0:1'; exit 1; }
echo 'guard: UCX offers rc_verbs on rxe0:1'
