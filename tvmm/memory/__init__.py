"""Guest-physical memory: layout, regions and RAM blocks."""
