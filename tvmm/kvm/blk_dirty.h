/* Which blocks of a disk were written while a mirror of it is made: one bit for each, set by the queues, taken by whoever
 * copies.
 *
 * A queue marks what a call was given when that call has come back, whatever it says, and before the driver hears of it.
 * That is enough. Whoever copies clears a bit first and reads the block then:
 *
 *   - a write that had come back before its mark, and a mark before the clear: the read has all of it (the clear is an
 *     atomic exchange that takes in what went before the mark, which is one too);
 *   - a mark after the clear: the bit is set again, and the block is read once more, after the mark. What was read in
 *     between, old, new or torn, is overwritten at the other end by what is read then.
 *
 * A mark before the call as well would only have blocks copied twice: while a call is under way its block may be read as
 * often as one likes, the mark after it comes in any case. No call is under way when the bitmap appears: its owner holds
 * the queues for that. When it goes away nobody copies any more.
 *
 * The words are shared by all threads of a disk, and two that set the same bit again and again would fight for a cache line:
 * so a bit that is set is looked at and left alone. That look comes after the call too, and a set bit that it sees was
 * not taken yet: who takes it reads later than this.
 */
#ifndef TVMM_BLK_DIRTY_H
#define TVMM_BLK_DIRTY_H

#include <stdint.h>

/* `blocks` of 1 << shift bytes, the last one perhaps cut short. */
struct tvmm_blk_dirty {
    uint64_t *words;
    uint64_t blocks;
    uint32_t shift;
};

void tvmm_blk_dirty_mark(struct tvmm_blk_dirty *dirty, uint64_t offset, uint64_t length);
void tvmm_blk_dirty_fill(struct tvmm_blk_dirty *dirty);
uint64_t tvmm_blk_dirty_take(struct tvmm_blk_dirty *dirty, uint64_t from, uint64_t limit, uint64_t *first);
uint64_t tvmm_blk_dirty_count(const struct tvmm_blk_dirty *dirty);
int tvmm_all_zero(const uint8_t *data, uint64_t length);

#endif
