//! Reading TOML with line and column: [`protocol`] does it for servers and sites alike.

pub use protocol::{ConfigError, read_toml};
