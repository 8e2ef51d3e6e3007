//! What must not leak: clipping, the integer lattice and the exact sum
