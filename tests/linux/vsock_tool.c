/* Sockets of the vsock family in a guest: what no tool of its initramfs does. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static char data[1 << 16];

static int die(const char *what)
{
    printf("%s: %s\n", what, strerror(errno));
    return 1;
}

static int dial(unsigned port)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    return fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) ? -1 : fd;
}

static int echo(unsigned port, int count)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
    long total = 0, length;
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128))
        return die("listen");
    printf("LISTENING\n");
    fflush(stdout);
    for (int i = 0; i < count; i++) {
        int fd = accept(listener, 0, 0);
        while ((length = read(fd, data, sizeof data)) > 0 && write(fd, data, length) == length)
            total += length;
        printf("connection %d: %s\n", i, length < 0 ? strerror(errno) : "ended");
        close(fd);
    }
    printf("echoed %ld\n", total);
    return 0;
}

static int send_bytes(unsigned port, long wanted)
{
    int fd = dial(port);
    long done = 0, back = 0, length;
    if (fd < 0)
        return die("connect");
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (char)(i ^ i >> 8);
    while (done < wanted && (length = write(fd, data, wanted - done < (long)sizeof data ? wanted - done : (long)sizeof data)) > 0)
        done += length;
    shutdown(fd, SHUT_WR);
    while ((length = read(fd, data, sizeof data)) > 0)
        back += length;
    printf("sent %ld, %ld came back\n", done, back);
    return 0;
}

static int many(unsigned port, int count)
{
    int *fds = calloc(count, sizeof *fds), good = 0;
    for (int i = 0; i < count; i++)
        if ((fds[i] = dial(port)) < 0)
            return die("connect");
    for (int i = 0; i < count; i++) {
        char words[16], answer[16] = "";
        int length = sprintf(words, "number %d", i);
        good += write(fds[i], words, length) == length && read(fds[i], answer, sizeof answer - 1) == length
                && !strcmp(words, answer);
    }
    printf("%d of %d answered\n", good, count);
    return 0;
}

int main(int count, char **words)
{
    unsigned port = count > 2 ? (unsigned)atoi(words[2]) : 0;
    long number = count > 3 ? atol(words[3]) : 0;
    if (count < 4)
        return 2;
    return *words[1] == 'e' ? echo(port, (int)number) : *words[1] == 's' ? send_bytes(port, number) : many(port, (int)number);
}
