/* A viewer on libvncclient: takes one picture, optionally types, and writes the picture as PPM to standard output.
 *
 *     libvnc_viewer HOST PORT ENCODINGS SCHEMES QUALITY QUIET_MS [KEYSYM...]
 *
 * ENCODINGS as libvncclient spells them ("tight zrle"); SCHEMES are numbers of security types, by commas, VeNCrypt's
 * subtypes among them, or "any". QUALITY 0..9, or -1 for no JPEG. The picture is taken when all of the screen has come
 * and nothing more came for QUIET_MS. VIEWER_USER, VIEWER_PASSWORD, VIEWER_CA and VIEWER_CLICK (X,Y: where the left
 * button is pressed) are taken from the environment. */
#include <rfb/rfbclient.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned char *seen;
static long missing;

static rfbBool make_screen(rfbClient *client)
{
    size_t pixels = (size_t)client->width * client->height;

    free(client->frameBuffer);
    free(seen);
    client->frameBuffer = calloc(pixels, 4);
    seen = calloc(pixels, 1);
    missing = (long)pixels;
    return client->frameBuffer && seen;
}

static void got_update(rfbClient *client, int x, int y, int width, int height)
{
    for (int row = y; row < y + height && row < client->height; row++)
        for (int column = x; column < x + width && column < client->width; column++) {
            unsigned char *mark = &seen[(size_t)row * client->width + column];
            missing -= !*mark;
            *mark = 1;
        }
}

static char *copy(const char *name)
{
    const char *value = getenv(name);
    return strdup(value ? value : "");
}

static char *get_password(rfbClient *client)
{
    (void)client;
    return copy("VIEWER_PASSWORD");
}

static rfbCredential *get_credential(rfbClient *client, int type)
{
    rfbCredential *credential = calloc(1, sizeof *credential);

    (void)client;
    if (type == rfbCredentialTypeUser) {
        credential->userCredential.username = copy("VIEWER_USER");
        credential->userCredential.password = copy("VIEWER_PASSWORD");
    } else {
        if (getenv("VIEWER_CA") && *getenv("VIEWER_CA"))
            credential->x509Credential.x509CACertFile = copy("VIEWER_CA");
        credential->x509Credential.x509CrlVerifyMode = rfbX509CrlVerifyNone;
    }
    return credential;
}

static void set_schemes(rfbClient *client, char *text)
{
    uint32_t schemes[16];
    int count = 0;

    if (!strcmp(text, "any"))
        return;
    for (char *word = strtok(text, ","); word && count < 16; word = strtok(NULL, ","))
        schemes[count++] = (uint32_t)strtoul(word, NULL, 0);
    SetClientAuthSchemes(client, schemes, count);
}

int main(int argc, char **argv)
{
    rfbClient *client;
    int quiet, x, y;

    if (argc < 7)
        return 2;
    client = rfbGetClient(8, 3, 4);
    client->MallocFrameBuffer = make_screen;
    client->GotFrameBufferUpdate = got_update;
    client->GetPassword = get_password;
    client->GetCredential = get_credential;
    client->canHandleNewFBSize = TRUE;
    client->serverHost = strdup(argv[1]);
    client->serverPort = atoi(argv[2]);
    client->appData.encodingsString = argv[3];
    client->appData.enableJPEG = atoi(argv[5]) >= 0;
    client->appData.qualityLevel = atoi(argv[5]) >= 0 ? atoi(argv[5]) : 9;
    client->appData.useRemoteCursor = TRUE;
    set_schemes(client, argv[4]);
    quiet = atoi(argv[6]) * 1000;
    if (!rfbInitClient(client, NULL, NULL))
        return 1;
    for (;;) {
        /* What has been read already is not waited for. */
        int ready = client->buffered ? 1 : WaitForMessage(client, missing ? 10000000 : quiet);
        if (ready < 0 || (ready == 0 && missing))
            return 1;
        if (ready == 0)
            break;
        if (!HandleRFBServerMessage(client))
            return 1;
    }
    for (int each = 7; each < argc; each++) {
        uint32_t key = (uint32_t)strtoul(argv[each], NULL, 0);
        SendKeyEvent(client, key, TRUE);
        SendKeyEvent(client, key, FALSE);
    }
    if (getenv("VIEWER_CLICK") && sscanf(getenv("VIEWER_CLICK"), "%d,%d", &x, &y) == 2)
        for (int mask = 1; mask >= 0; mask--)
            SendPointerEvent(client, x, y, mask);
    /* The pixels that libvncclient asks for by default are R, G, B, unused. */
    printf("P6 %d %d 255\n", client->width, client->height);
    for (size_t each = 0; each < (size_t)client->width * client->height; each++)
        fwrite(client->frameBuffer + 4 * each, 1, 3, stdout);
    rfbClientCleanup(client);
    return 0;
}
