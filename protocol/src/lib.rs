//! What is said: ids, time, seeds, layouts, tasks, updates and the wire codec
