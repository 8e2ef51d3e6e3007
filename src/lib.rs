//! What the command `consortia` keeps beside its words: the folder of results with its reports and models, and what it measures of itself.
//! Benches and tests use it, too. Programs of your own start at the library `consortia`.

pub mod results;
