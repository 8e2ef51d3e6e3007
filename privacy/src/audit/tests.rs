//! What the audits find.

mod mutants;
