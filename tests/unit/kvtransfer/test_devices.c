/* Which RDMA ports become rails, on machines that are tables, and what is read from a sysfs that is
 * a directory of this test. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "kvtransfer/rails/devices.h"
#include "kvtransfer/rails/gpu_memory.h"

#define LINK_LOCAL 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9
#define GLOBAL     0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9
#define IPV4       0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 9

static const struct kvt_near nowhere = {.numa_node = -1};

static struct kvt_rdma_port make_port(const char *name, uint32_t gbps, int numa, const char *pci)
{
    struct kvt_rdma_port port = {.active = true,
                                 .state = "ACTIVE",
                                 .rate_mbps = gbps * 1000,
                                 .mtu = 4096,
                                 .numa_node = numa,
                                 .gids = {{3, KVT_GID_ROCE_V2, {IPV4}}},
                                 .gid_count = 1};

    snprintf(port.name, sizeof(port.name), "%s", name);
    snprintf(port.pci_path, sizeof(port.pci_path), "%s", pci);
    return port;
}

static void put_down(struct kvt_rdma_port *port)
{
    port->active = false;
    port->state = "DOWN";
}

static void expect(const struct kvt_rdma_port *ports, uint32_t count, const char *wanted,
                   const struct kvt_near *near, const char *names)
{
    uint32_t indices[KVT_RAILS_MAX], taken = 0;
    struct bt_error error = {0};
    char got[1024] = "";

    if (kvt_ports_select(ports, count, wanted, near, &error, indices, &taken) != BT_OK)
        fail_msg("%s", error.text);
    for (uint32_t i = 0; i < taken; i++) {
        strcat(got, i > 0 ? " " : "");
        strcat(got, ports[indices[i]].name);
    }
    assert_string_equal(got, names);
}

static void expect_error(const struct kvt_rdma_port *ports, uint32_t count, const char *wanted,
                         enum bt_status status, const char *text)
{
    uint32_t indices[KVT_RAILS_MAX], taken = 77;
    struct bt_error error = {0};

    assert_int_equal(kvt_ports_select(ports, count, wanted, &nowhere, &error, indices, &taken),
                     status);
    assert_int_equal(taken, 77);
    if (strstr(error.text, text) == NULL)
        fail_msg("\"%s\" is not in \"%s\"", text, error.text);
}

/* Eight GPUs, each behind a PCI switch with a NIC of 400 Gb/s; two sockets; a slow NIC besides. */
static uint32_t make_h100_box(struct kvt_rdma_port *ports)
{
    for (uint32_t i = 0; i < 8; i++) {
        char name[16], pci[128];
        snprintf(name, sizeof(name), "mlx5_%u:1", i);
        snprintf(pci, sizeof(pci), "pci0000:%u5/0000:%u5:01.0/0000:%u6:00.0/0000:%u7:00.0", i, i, i,
                 i);
        ports[i] = make_port(name, 400, i < 4 ? 0 : 1, pci);
    }
    ports[8] = make_port("mlx5_8:1", 25, 0, "pci0000:99/0000:99:01.0");
    return 9;
}

static void h100_box(void **state)
{
    struct kvt_rdma_port ports[9];
    uint32_t count = make_h100_box(ports);
    char gpu[128];
    (void)state;

    expect(ports, count, NULL, &nowhere,
           "mlx5_0:1 mlx5_1:1 mlx5_2:1 mlx5_3:1 mlx5_4:1 mlx5_5:1 mlx5_6:1 mlx5_7:1");
    expect(ports, count, NULL, &(struct kvt_near){.numa_node = 1},
           "mlx5_4:1 mlx5_5:1 mlx5_6:1 mlx5_7:1");
    for (uint32_t i = 0; i < 8; i++) { /* its own NIC for each GPU */
        snprintf(gpu, sizeof(gpu), "pci0000:%u5/0000:%u5:01.0/0000:%u6:08.0/0000:%u9:00.0", i, i, i,
                 i);
        expect(ports, count, NULL, &(struct kvt_near){.pci_path = gpu, .numa_node = i < 4 ? 0 : 1},
               ports[i].name);
    }
    put_down(&ports[2]); /* its GPU goes by the NICs of its socket */
    expect(ports, count, NULL,
           &(struct kvt_near){.pci_path = "pci0000:25/0000:25:01.0/0000:26:08.0", .numa_node = 0},
           "mlx5_0:1 mlx5_1:1 mlx5_3:1");
}

static void dual_port_with_one_down(void **state)
{
    struct kvt_rdma_port ports[] = {make_port("mlx5_0:1", 200, 0, "pci0000:17/0000:17:00.0"),
                                    make_port("mlx5_0:2", 200, 0, "pci0000:17/0000:17:00.0")};
    (void)state;

    expect(ports, 2, NULL, &nowhere, "mlx5_0:1 mlx5_0:2");
    expect(ports, 2, "mlx5_0", &nowhere, "mlx5_0:1 mlx5_0:2");
    expect(ports, 2, "mlx5_0:2,mlx5_0:1", &nowhere, "mlx5_0:2 mlx5_0:1");
    expect(ports, 2, "mlx5_0:2,mlx5_0", &nowhere, "mlx5_0:2 mlx5_0:1"); /* none twice */
    put_down(&ports[0]);
    expect(ports, 2, NULL, &nowhere, "mlx5_0:2");
    expect_error(ports, 2, "mlx5_0:1", BT_ERR_UNAVAILABLE, "mlx5_0:1: DOWN");
    put_down(&ports[1]);
    expect_error(ports, 2, NULL, BT_ERR_UNAVAILABLE, "mlx5_0:1 (DOWN), mlx5_0:2 (DOWN)");
}

static void mixed_rates(void **state)
{
    struct kvt_rdma_port ports[] = {
        make_port("a:1", 400, 0, ""), make_port("b:1", 200, 0, ""), make_port("c:1", 100, 0, ""),
        make_port("d:1", 99, 0, ""),  make_port("e:1", 0, 0, ""),
    };
    (void)state;

    expect(ports, 5, NULL, &nowhere, "a:1 b:1 c:1");
    expect(ports, 5, "d:1", &nowhere, "d:1"); /* who names it gets it */
    expect_error(ports, 5, "e:1", BT_ERR_UNAVAILABLE, "e:1: no known rate");
}

static void no_gid(void **state)
{
    struct kvt_rdma_port ports[] = {make_port("a:1", 100, 0, ""), make_port("b:1", 100, 0, "")};
    (void)state;

    ports[0].gid_count = 0;
    expect(ports, 2, NULL, &nowhere, "b:1");
    memset(ports[1].gids[0].bytes, 0, 16); /* an empty entry of the table */
    expect_error(ports, 2, NULL, BT_ERR_UNAVAILABLE, "a:1 (no GID), b:1 (no GID)");
    ports[0].infiniband = true; /* goes by its LID */
    expect(ports, 2, NULL, &nowhere, "a:1");
}

static void names_that_are_not_there(void **state)
{
    struct kvt_rdma_port ports[KVT_RAILS_MAX + 1];
    (void)state;

    for (uint32_t i = 0; i <= KVT_RAILS_MAX; i++) {
        char name[16];
        snprintf(name, sizeof(name), "n%02u:1", i);
        ports[i] = make_port(name, 100, 0, "");
    }
    expect_error(ports, 2, "mlx5_9:1", BT_ERR_NOT_FOUND, "there are: n00:1, n01:1");
    expect_error(ports, 2, "n0", BT_ERR_NOT_FOUND, "'n0'"); /* a beginning is no name */
    expect_error(ports, 2, "n00:11", BT_ERR_NOT_FOUND, "'n00:11'");
    expect_error(ports, 2, "", BT_ERR_NOT_FOUND, "''");
    expect_error(ports, 2, "n00:1,", BT_ERR_NOT_FOUND, "''");
    expect_error(ports, 0, "n00:1", BT_ERR_NOT_FOUND, "there are: none");
    expect_error(ports, 0, NULL, BT_ERR_UNAVAILABLE, "none");
    expect(ports, KVT_RAILS_MAX + 1, NULL, &nowhere,
           "n00:1 n01:1 n02:1 n03:1 n04:1 n05:1 n06:1 n07:1 n08:1 n09:1 n10:1 n11:1 n12:1 n13:1 "
           "n14:1 n15:1");
    expect_error(ports, KVT_RAILS_MAX + 1,
                 "n00,n01,n02,n03,n04,n05,n06,n07,n08,n09,n10,n11,n12,n13,n14,n15,n16",
                 BT_ERR_INVALID_ARGUMENT, "more than 16");
}

static void gid_preference(void **state)
{
    struct kvt_rdma_port port = {.mellanox = true,
                                 .gids = {{0, KVT_GID_ROCE_V1, {LINK_LOCAL}},
                                          {1, KVT_GID_ROCE_V2, {LINK_LOCAL}},
                                          {2, KVT_GID_ROCE_V1, {IPV4}},
                                          {3, KVT_GID_ROCE_V2, {IPV4}},
                                          {4, KVT_GID_ROCE_V2, {GLOBAL}},
                                          {5, KVT_GID_ROCE_V2, {IPV4}}},
                                 .gid_count = 6};
    char text[48];
    (void)state;

    assert_int_equal(kvt_gid_choose(&port)->index, 3); /* v2, IPv4, the first such */
    kvt_gid_format(kvt_gid_choose(&port), text);
    assert_string_equal(text, "::ffff:10.0.0.9");
    assert_true(kvt_gid_is_ipv4(&port.gids[2]));
    assert_false(kvt_gid_is_ipv4(&port.gids[4]));
    port.mellanox = false;
    assert_int_equal(kvt_gid_choose(&port)->index, 4); /* IPv4 last, of any version's */
    port.gid_count = 4;
    assert_int_equal(kvt_gid_choose(&port)->index, 1);
    memset(port.gids[1].bytes, 0, 16);
    assert_int_equal(kvt_gid_choose(&port)->index, 3); /* v2 before v1, all the same */
    port.gids[1] = (struct kvt_gid){1, KVT_GID_ROCE_V2, {LINK_LOCAL}};
    port.gid_count = 6;
    port.mellanox = true;
    memset(port.gids[3].bytes, 0, 16);
    memset(port.gids[5].bytes, 0, 16);
    assert_int_equal(kvt_gid_choose(&port)->index, 4);
    memset(port.gids[4].bytes, 0, 16);
    assert_int_equal(kvt_gid_choose(&port)->index, 1); /* v2 before v1, even link-local */
    port.gid_count = 1;
    assert_int_equal(kvt_gid_choose(&port)->index, 0);
    port.infiniband = true;
    assert_null(kvt_gid_choose(&port));
    port.gids[0].type = KVT_GID_IB;
    assert_int_equal(kvt_gid_choose(&port)->index, 0);
    port.infiniband = false;
    assert_null(kvt_gid_choose(&port));
}

static void rates(void **state)
{
    (void)state;
    assert_int_equal(kvt_link_rate_mbps(1, 1), 2500);      /* 1X SDR */
    assert_int_equal(kvt_link_rate_mbps(2, 32), 100000);   /* 4X EDR */
    assert_int_equal(kvt_link_rate_mbps(2, 64), 200000);   /* 4X HDR */
    assert_int_equal(kvt_link_rate_mbps(2, 128), 400000);  /* 4X NDR */
    assert_int_equal(kvt_link_rate_mbps(2, 256), 800000);  /* 4X XDR */
    assert_int_equal(kvt_link_rate_mbps(16, 128), 200000); /* 2X NDR */
    assert_int_equal(kvt_link_rate_mbps(3, 128), 0);
    assert_int_equal(kvt_link_rate_mbps(2, 0), 0);
    assert_int_equal(kvt_rate_parse_mbps("400 Gb/sec (4X NDR)"), 400000);
    assert_int_equal(kvt_rate_parse_mbps("2.5 Gb/sec (1X SDR)\n"), 2500);
    assert_int_equal(kvt_rate_parse_mbps("fast"), 0);
    assert_int_equal(kvt_rate_parse_mbps("-5 Gb/sec"), 0);
    assert_int_equal(kvt_rate_parse_mbps("nan Gb/sec"), 0);
    assert_int_equal(kvt_rate_parse_mbps("1e30 Gb/sec"), 0);
    assert_int_equal(kvt_rate_parse_mbps(""), 0);
}

static void distances(void **state)
{
    (void)state;
    assert_int_equal(
        kvt_pci_distance("pci0000:16/0000:16:01.0/a", 0, "pci0000:16/0000:16:01.0/b", 0),
        KVT_DISTANCE_SWITCH);
    assert_int_equal(kvt_pci_distance("pci0000:16/0000:16:01.0", 0, "pci0000:16/0000:16:02.0", 0),
                     KVT_DISTANCE_ROOT);
    assert_int_equal(kvt_pci_distance("pci0000:16/x", 0, "pci0000:17/x", 0), KVT_DISTANCE_NODE);
    assert_int_equal(kvt_pci_distance("pci0000:16/x", 0, "pci0000:17/x", 1), KVT_DISTANCE_SYSTEM);
    assert_int_equal(kvt_pci_distance("pci0000:16/x", -1, "pci0000:17/x", -1), KVT_DISTANCE_SYSTEM);
    assert_int_equal(kvt_pci_distance("pci0000:1", 0, "pci0000:16", 1), KVT_DISTANCE_SYSTEM);
    assert_int_equal(kvt_pci_distance("", 0, "", 0), KVT_DISTANCE_NODE);
}

/* ---- reading ---- */

static char root[64];

static void make_directories(const char *path)
{
    char full[512];

    snprintf(full, sizeof(full), "%s/%s", root, path);
    for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = '\0';
        mkdir(full, 0700);
        *at = '/';
    }
    mkdir(full, 0700);
}

static void make_file(const char *path, const char *text)
{
    char full[512];
    FILE *file;

    snprintf(full, sizeof(full), "%s/%s", root, path);
    file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void make_link(const char *path, const char *to)
{
    char full[512];

    snprintf(full, sizeof(full), "%s/%s", root, path);
    assert_int_equal(symlink(to, full), 0);
}

static int make_root(void **state)
{
    (void)state;
    strcpy(root, "/tmp/baton-devices-XXXXXX");
    return mkdtemp(root) == NULL;
}

static int remove_root(void **state)
{
    char command[128];
    (void)state;

    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command);
}

static void sysfs_places_a_port(void **state)
{
    struct kvt_rdma_port port = {.name = "mlx5_0:1"}, soft = {.name = "rxe0:1", .rate_mbps = 2500};
    char path[KVT_PCI_PATH_SIZE];
    int numa = 7;
    (void)state;

    make_directories("devices/pci0000:16/0000:16:01.0/0000:17:00.0");
    make_file("devices/pci0000:16/0000:16:01.0/0000:17:00.0/numa_node", "1\n");
    make_directories("class/infiniband/mlx5_0/ports/1");
    make_file("class/infiniband/mlx5_0/ports/1/rate", "1600 Gb/sec (8X XDR)\n");
    make_link("class/infiniband/mlx5_0/device",
              "../../../devices/pci0000:16/0000:16:01.0/0000:17:00.0");
    make_directories("class/infiniband/rxe0");
    make_directories("bus/pci/devices");
    make_link("bus/pci/devices/0000:17:00.0",
              "../../../devices/pci0000:16/0000:16:01.0/0000:17:00.0");

    kvt_sysfs_locate(root, &port);
    assert_string_equal(port.pci_path, "pci0000:16/0000:16:01.0/0000:17:00.0");
    assert_int_equal(port.numa_node, 1);
    assert_int_equal(port.rate_mbps, 1600000); /* no code was known */
    kvt_sysfs_locate(root, &soft);
    assert_string_equal(soft.pci_path, "");
    assert_int_equal(soft.numa_node, -1);
    assert_int_equal(soft.rate_mbps, 2500);

    assert_true(kvt_sysfs_pci(root, "0000:17:00.0", path, &numa));
    assert_string_equal(path, port.pci_path);
    assert_int_equal(numa, 1);
    assert_false(kvt_sysfs_pci(root, "0000:18:00.0", path, &numa));
    assert_false(kvt_sysfs_pci(root, "../devices/0000:17:00.0", path, &numa));
}

static void gpu_by_its_bus_id(void **state)
{
    struct kvt_rdma_port beside =
        make_port("mlx5_0:1", 400, 1, "pci0000:97/0000:97:01.0/0000:9b:00.0");
    struct kvt_rdma_port far =
        make_port("mlx5_1:1", 400, 1, "pci0000:b0/0000:b0:01.0/0000:b1:00.0");
    char path[KVT_PCI_PATH_SIZE];
    struct kvt_near near = nowhere;
    (void)state;

    make_directories("devices/pci0000:97/0000:97:01.0/0000:9a:00.0");
    make_file("devices/pci0000:97/0000:97:01.0/0000:9a:00.0/numa_node", "1\n");
    make_directories("bus/pci/devices");
    make_link("bus/pci/devices/0000:9a:00.0",
              "../../../devices/pci0000:97/0000:97:01.0/0000:9a:00.0");
    assert_false(kvt_near_gpu(root, "", path, &near));
    assert_false(kvt_near_gpu(root, "0000:9F:00.0", path, &near));
    assert_null(near.pci_path);
    assert_true(kvt_near_gpu(root, "0000:9A:00.0", path, &near));
    assert_int_equal(near.numa_node, 1);
    assert_true(kvt_port_distance(&beside, &near) < kvt_port_distance(&far, &near));
}

static int node_of(int first, int second)
{
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    CPU_SET((size_t)first, &cpus);
    CPU_SET((size_t)second, &cpus);
    return kvt_sysfs_node_of_cpus(root, &cpus);
}

static void cpus_are_on_nodes(void **state)
{
    (void)state;

    assert_int_equal(node_of(0, 0), -1); /* no such directory */
    make_directories("devices/system/node/node0");
    make_directories("devices/system/node/node1");
    make_directories("devices/system/node/node7");
    make_file("devices/system/node/node0/cpulist", "0-3,8-11\n");
    make_file("devices/system/node/node1/cpulist", "4-7,12-15\n");
    make_file("devices/system/node/node7/cpulist", "\n"); /* memory alone */
    assert_int_equal(node_of(0, 0), 0);
    assert_int_equal(node_of(0, 11), 0);
    assert_int_equal(node_of(4, 12), 1);
    assert_int_equal(node_of(7, 8), -1); /* both */
    assert_int_equal(node_of(16, 16), -1);
    make_file("devices/system/node/node7/cpulist", "99-\n");
    assert_int_equal(node_of(15, 15), 1);
}

static void expect_gpu(const char *kernel, bool verbs, bool peer, bool dmabuf, const char *words)
{
    struct kvt_gpu_memory memory;

    kvt_gpu_memory_judge(root, kernel, verbs, &memory);
    assert_int_equal(memory.peer_memory, peer);
    assert_int_equal(memory.dmabuf, dmabuf);
    if (strstr(memory.words, words) == NULL)
        fail_msg("\"%s\" is not in \"%s\"", words, memory.words);
}

static void gpu_memory(void **state)
{
    (void)state;
    expect_gpu("6.1.0-13-amd64", true, false, true, "no NVIDIA driver");
    make_directories("proc");
    make_file("proc/modules", "nvidia_uvm 1 0 - Live 0x0\nnvidia 2 1 nvidia_uvm, Live 0x0\n");
    expect_gpu("6.1.0", true, false, true, "can reach GPU memory through dma-buf");
    expect_gpu("5.11.22", true, false, false, "older than 5.12");
    expect_gpu("5.12.0", false, false, false, "libibverbs is too old");
    expect_gpu("strange", true, false, false, "older than 5.12");
    make_directories("sys/module/nvidia_peermem");
    expect_gpu("5.4.0", false, true, false, "through the peer memory module");
    expect_gpu("6.8", true, true, true, "dma-buf is there, too");
}

static void this_machine_can_be_read(void **state)
{
    static struct kvt_rdma_port ports[KVT_PORTS_MAX];
    struct kvt_gpu_memory memory;
    uint32_t count = kvt_ports_read(ports);
    (void)state;

    assert_true(count <= KVT_PORTS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        assert_non_null(strchr(ports[i].name, ':'));
        print_message("%s: %s, %u Mb/s\n", ports[i].name, ports[i].state, ports[i].rate_mbps);
    }
    kvt_gpu_memory_probe(&memory);
    assert_true(memory.words[0] != '\0');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(h100_box),
        cmocka_unit_test(dual_port_with_one_down),
        cmocka_unit_test(mixed_rates),
        cmocka_unit_test(no_gid),
        cmocka_unit_test(names_that_are_not_there),
        cmocka_unit_test(gid_preference),
        cmocka_unit_test(rates),
        cmocka_unit_test(distances),
        cmocka_unit_test_setup_teardown(sysfs_places_a_port, make_root, remove_root),
        cmocka_unit_test_setup_teardown(gpu_by_its_bus_id, make_root, remove_root),
        cmocka_unit_test_setup_teardown(cpus_are_on_nodes, make_root, remove_root),
        cmocka_unit_test_setup_teardown(gpu_memory, make_root, remove_root),
        cmocka_unit_test(this_machine_can_be_read),
    };

    return cmocka_run_group_tests_name("devices", tests, NULL, NULL);
}
