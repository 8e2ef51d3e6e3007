//! What releases cost: epsilon at a delta, computed from the events that were released and from nothing else.

