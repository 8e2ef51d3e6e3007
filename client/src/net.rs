//! Speaking with the server: the shell around [`crate::Participant`], and an operator's requests.
