//! Commands that are shown to be typed: their arguments, as a shell reads them.

use std::ffi::OsStr;

/// An argument as it is typed: as it is where a shell takes it so, else within single quotes (POSIX.1-2024, 2.2.2).
pub(super) fn quoted(argument: impl AsRef<OsStr>) -> String {
    let text = argument.as_ref().to_string_lossy();
    let is_plain = |letter: char| letter.is_alphanumeric() || "_-./,:=+@%".contains(letter);
    if !text.is_empty() && text.chars().all(is_plain) && !text.starts_with('-') {
        return text.into_owned();
    }
    let quoted = format!("'{}'", text.replace('\'', r"'\''"));
    // A name that begins with a dash would be read as an option.
    if text.starts_with('-') { quoted.replacen('\'', "'./", 1) } else { quoted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_shell_reads_back_what_was_quoted() {
        for argument in [
            "plain",
            "a b",
            "it's",
            "",
            "$HOME",
            "a\"b",
            "back\\slash",
            "new\nline",
            "(x)&;|<>*?[!#~",
            "Müller/ä",
        ] {
            let script = format!("printf %s {}", quoted(argument));
            let echoed = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&echoed.stdout), argument);
        }
        assert_eq!(quoted("fed/site-1.toml"), "fed/site-1.toml");
        assert_eq!(quoted("-x"), "'./-x'");
    }
}
