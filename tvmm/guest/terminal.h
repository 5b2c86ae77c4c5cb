/* The shell on the screen: what is printed, in cells of the font. */
#ifndef GUEST_TERMINAL_H
#define GUEST_TERMINAL_H

#include "lib.h"

void terminal_show(bool on); /* on: clears the screen and begins at its top */
bool terminal_shown(void);

#endif
