#include "kvtransfer/transport.h"

#ifdef KVT_HAVE_UCX
#include "kvtransfer/ucx/ucx.h"
#endif

enum bt_status kvt_transport_create(const struct kvt_transport_options *options,
                                    struct bt_error *error, struct kvt_transport **ret_transport)
{
#ifdef KVT_HAVE_UCX
    return kvt_ucx_transport_create(options, error, ret_transport);
#else
    (void)ret_transport;
    return bt_error_set(error, BT_ERR_UNSUPPORTED, "transport '%s': built without ucx",
                        options->name);
#endif
}
