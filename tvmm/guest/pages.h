/* Pages that tell when they are lost, torn, misplaced or an older version. */
#ifndef GUEST_PAGES_H
#define GUEST_PAGES_H

#include "lib.h"

/* Uses `bytes` of the free RAM, from the lowest on. With another size than before: from the beginning. */
bool pages_set_up(u64 bytes); /* false, with a line printed, if there is not so much */
u64 pages_free(void);         /* how many pages pages_set_up() could have */
void pages_write_next(void);  /* verifies a page, then writes it anew */
u64 pages_verify(void);       /* all that were written; returns how many, fewer by Ctrl-C */

u64 pages_count(void);
u64 pages_written(void); /* since pages_set_up(), over all commands */
u64 pages_errors(void);  /* likewise; the first are printed */

#endif
