/* The generation ID: 16 bytes that change when this guest may not be the only one that goes on from here. */
#ifndef GUEST_GENID_H
#define GUEST_GENID_H

#include "arch.h"

#define GUID_BYTES 16

const u8 *genid(void);         /* where it is, NULL if there is none; changes are heard of from the first call on */
u32 genid_notifications(void); /* so often the machine has said that it changed */
u32 genid_changes(void);       /* and so often it was another one then */

#endif
