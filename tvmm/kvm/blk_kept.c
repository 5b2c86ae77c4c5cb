/* Requests that are kept: over an error, and in a machine that goes on from a saved state. See blk.h. */
#include "blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Until the owner has mended what is wrong; in the order of the ring, so that they are repeated in it. */
void tvmm_blk_keep(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    struct tvmm_blk_request **at = &blk->kept;
    while (*at && (*at)->number < request->number)
        at = &(*at)->next;
    request->next = *at;
    *at = request;
}

/* A request as it was kept, behind those that are there; its chain is in flight in the ring. `request` brings id, operation,
 * status, offset, length, done, stable, and the pieces and ranges that are left to do, which are copied. The caller has
 * checked all of it. 0, -ENOMEM, or -ENOSPC for more requests than the ring has entries. */
int tvmm_blk_keep_again(struct tvmm_blk *blk, const struct tvmm_blk_request *request)
{
    struct tvmm_blk_request *kept = blk->free, **last = &blk->kept;
    uint32_t pieces = request->iovec_count, ranges = request->range_count;

    if (!kept)
        return -ENOSPC;
    struct iovec *iovecs = pieces > TVMM_BLK_FEW_IOVECS ? malloc(pieces * sizeof *iovecs) : kept->few;
    struct tvmm_blk_range *copies = ranges ? malloc(ranges * sizeof *copies) : NULL;
    if (!iovecs || (ranges && !copies)) {
        if (iovecs != kept->few)
            free(iovecs);
        free(copies);
        return -ENOMEM;
    }
    blk->free = kept->next;
    *kept = (struct tvmm_blk_request){
        .number = blk->next_number++, .since_ns = tvmm_now_ns(), .id = request->id, .operation = request->operation, .status = request->status,
        .offset = request->offset, .length = request->length, .done = request->done, .stable = request->stable,
        .iovecs = iovecs, .iovec_count = pieces, .ranges = copies, .range_count = ranges};
    if (pieces)
        memcpy(iovecs, request->iovecs, pieces * sizeof *iovecs);
    if (ranges)
        memcpy(copies, request->ranges, ranges * sizeof *copies);
    while (*last)
        last = &(*last)->next;
    *last = kept;
    return 0;
}
