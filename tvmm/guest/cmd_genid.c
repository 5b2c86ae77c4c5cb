/* The command about the generation ID. */
#include "commands.h"
#include "console.h"
#include "genid.h"

bool cmd_genid(int count, char **arguments)
{
    (void)arguments;
    const u8 *id = genid();
    if (count != 1)
        return false;
    if (!id) {
        print("genid: none\n");
        return true;
    }
    print("genid: %02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-", id[3], id[2], id[1], id[0], id[5], id[4], id[7], id[6],
          id[8], id[9]);
    for (int i = 10; i < GUID_BYTES; i++)
        print("%02x", id[i]);
    print(" at 0x%lx, %u notifications, %u changes\n", (u64)id, genid_notifications(), genid_changes());
    return true;
}
