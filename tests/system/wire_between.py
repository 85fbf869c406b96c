"""Bridges two network devices and loses, delays, doubles and reorders the frames that pass.

Run in a network namespace of its own: `wire_between.py DEVICE DEVICE SEED`. Each line of standard
input is a state: LOSS DOUBLE DELAY_MS JITTER_MS, where a loss of 1 is a partition.
"""
import heapq
import random
import select
import socket
import sys
import time

ETH_P_ALL = 3


def main():
    left, right, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    r = random.Random(seed)
    ends = []
    for device in (left, right):
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        end.bind((device, 0))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        end.setblocking(False)
        ends.append(end)
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    loss, double, delay, jitter = 0.0, 0.0, 0.0, 0.0
    late, serial = [], 0
    print("bridging", flush=True)
    while True:
        wait = max(0, late[0][0] - time.monotonic()) if late else 1
        for ready in select.select([*ends, sys.stdin], [], [], wait)[0]:
            if ready is sys.stdin:
                line = sys.stdin.readline()
                if not line:
                    return
                loss, double, delay, jitter = map(float, line.split())
                print("set", flush=True)
                continue
            for _ in range(64):
                try:
                    frame, where = ready.recvfrom(1 << 17)
                except BlockingIOError:
                    break
                if where[2] == socket.PACKET_OUTGOING:
                    continue
                copies = 0 if r.random() < loss else 2 if r.random() < double else 1
                for _ in range(copies):
                    serial += 1
                    heapq.heappush(late, (time.monotonic() + (delay + r.random() * jitter) / 1000,
                                          serial, other[ready], frame))
        now = time.monotonic()
        while late and late[0][0] <= now:
            _, _, end, frame = heapq.heappop(late)
            try:
                end.send(frame)
            except OSError:
                pass                    # a full queue: one more that is lost


if __name__ == "__main__":
    main()
