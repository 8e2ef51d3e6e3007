//! Measuring the program against the machine it runs on: what the command `consortia bench` and the benches share.
//!
//! Every figure has its limit measured beside it in the same run. Nothing is judged here: callers do.

pub mod wire;
