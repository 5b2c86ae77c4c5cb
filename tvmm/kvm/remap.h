/* Other memory in place of what is mapped at a block of guest RAM, also while a VM has it as a slot: KVM lets go of the old
 * pages when the kernel takes them out of the mapping, and finds the new ones when they are touched. */
#ifndef TVMM_REMAP_H
#define TVMM_REMAP_H

#include <stdint.h>

int tvmm_map_file(uint8_t *at, uint64_t length, int fd, uint64_t offset, int shared);
int tvmm_map_anonymous(uint8_t *at, uint64_t length);
void tvmm_tell_bus_errors(void);

#endif
