/* Sends frames to an interface as fast as it takes them, for so many seconds; prints how many.
 * usage: flood INTERFACE MAC BYTES SECONDS [FLOWS]    (a packet socket: needs CAP_NET_RAW)
 * Frames belong to FLOWS conversations in turn (default: 1), which differ in their UDP source port. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64
#define MAX_BYTES 1514

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    static unsigned char frames[BATCH][MAX_BYTES], *frame = frames[0];
    struct mmsghdr messages[BATCH];
    unsigned mac[6];

    if (argc < 5 || argc > 6 || sscanf(argv[2], "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 6)
        return 2;
    size_t bytes = (size_t)atoi(argv[3]);
    double seconds = atof(argv[4]);
    int flows = argc > 5 ? atoi(argv[5]) : 1;
    if (bytes < 60 || bytes > MAX_BYTES || flows < 1 || flows > BATCH)
        return 2;
    int fd = socket(AF_PACKET, SOCK_RAW, 0);
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(argv[1]), .sll_halen = 6};
    if (fd < 0 || !to.sll_ifindex || bind(fd, (struct sockaddr *)&to, sizeof to) < 0) {
        perror(argv[1]);
        return 1;
    }
    for (int i = 0; i < 6; i++)
        frame[i] = (unsigned char)mac[i];
    memcpy(frame + 6, "\x02\x00\x00\x00\x00\x01", 6);
    frame[12] = 0x08; /* IPv4, UDP to port 9, which discards */
    size_t ip = bytes - 14;
    memcpy(frame + 14, "\x45\x00\x00\x00\x00\x00\x00\x00\x40\x11\x00\x00\x0a\x00\x00\x02\x0a\x00\x00\x0f", 20);
    frame[16] = (unsigned char)(ip >> 8);
    frame[17] = (unsigned char)ip;
    frame[34] = frame[36] = 0;
    frame[35] = frame[37] = 9;
    frame[38] = (unsigned char)((ip - 20) >> 8);
    frame[39] = (unsigned char)(ip - 20);
    static struct iovec pieces[BATCH];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) {
        if (i)
            memcpy(frames[i], frame, bytes);
        frames[i][35] = (unsigned char)(9 + i % flows);
        pieces[i] = (struct iovec){frames[i], bytes};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    unsigned long sent = 0;
    double start = now(), end = start + seconds;
    while (now() < end) {
        int count = sendmmsg(fd, messages, BATCH, 0);
        if (count > 0)
            sent += (unsigned long)count;
    }
    printf("%lu frames in %.3f s\n", sent, now() - start);
    return 0;
}
