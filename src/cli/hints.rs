//! Commands that messages name, with the options that the command in hand was given, so that they work as they are typed from here.
//!
//! Every hint goes through [`Given::complete`] or [`Given::command`]: messages of the libraries know neither folders nor addresses.

use std::path::Path;

use super::shell::quoted;

/// What the command in hand was told of where things are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Given<'a> {
    /// An operator's command: the folder with the identity, and the server's address where one was typed.
    Operator { folder: &'a Path, server: Option<&'a str> },
    /// A command in a server's folder.
    Server(&'a Path),
    /// A command on a site's file.
    Site(&'a Path),
}

/// Operators' commands: all take `--dir` and `--server`.
const OF_OPERATORS: [&str; 8] = [
    "run ",
    "invite create",
    "site ls",
    "site revoke",
    "site approve",
    "site refuse",
    "site quarantine",
    "site release",
];
/// Commands that take a server's folder as their argument.
const OF_SERVERS: [&str; 2] = ["server run", "server dashboard"];
/// Commands that take a site's file as their argument.
const OF_SITES: [&str; 9] = [
    "site run",
    "site recover --believe-server",
    "site recover",
    "site resume",
    "site pause",
    "site renew",
    "site audit",
    "site check",
    "budget show",
];

impl Given<'_> {
    /// `consortia COMMAND` with what was given, where it takes that and does not say it already.
    pub(super) fn command(&self, command: &str) -> String {
        let argument = match self {
            Self::Operator { folder, server } if OF_OPERATORS.iter().any(|one| command.starts_with(one)) => {
                let is_elsewhere = *folder != Path::new(".") && !command.contains(" --dir");
                let dir = is_elsewhere.then(|| format!(" --dir {}", quoted(folder)));
                let server = server.map(|server| format!(" --server {}", quoted(server)));
                [dir, server].into_iter().flatten().collect()
            }
            Self::Operator { folder, .. } | Self::Server(folder) if OF_SERVERS.contains(&command) => {
                match *folder == Path::new(".") {
                    true => String::new(),
                    false => format!(" {}", quoted(folder)),
                }
            }
            Self::Site(file) if OF_SITES.contains(&command) => format!(" {}", quoted(file)),
            _ => String::new(),
        };
        format!("consortia {command}{argument}")
    }

    /// A message with every command that it names between backquotes completed.
    pub(super) fn complete(&self, message: &str) -> String {
        let mut parts = message.split('`');
        let mut told = parts.next().unwrap_or_default().to_owned();
        // Odd ones are between backquotes.
        for (part, is_quoted) in parts.zip([true, false].into_iter().cycle()) {
            told.push('`');
            match part.strip_prefix("consortia ").filter(|_| is_quoted) {
                Some(command) => told += &self.command(command),
                None => told += part,
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_to_operators_name_the_folder_and_the_server_that_were_given() {
        let folder = Path::new("my fed");
        let given = Given::Operator { folder, server: Some("far:7000") };
        assert_eq!(
            given.complete("do `consortia run watch 7`, or `consortia site ls`; not `--all`"),
            "do `consortia run watch 7 --dir 'my fed' --server far:7000`, or `consortia site ls --dir 'my fed' --server far:7000`; \
             not `--all`"
        );
        let given = Given::Operator { folder, server: None };
        assert_eq!(given.command("run ls"), "consortia run ls --dir 'my fed'");
        assert_eq!(given.command("server run"), "consortia server run 'my fed'");
        assert_eq!(given.command("site pause"), "consortia site pause", "that is the site's own");
        assert_eq!(given.command("invite create n --dir x"), "consortia invite create n --dir x");
        let here = Given::Operator { folder: Path::new("."), server: None };
        assert_eq!(
            here.complete("`consortia run ls` and `consortia server run`"),
            "`consortia run ls` and `consortia server run`"
        );
    }

    #[test]
    fn hints_to_sites_name_their_file_and_those_in_a_server_s_folder_the_folder() {
        let site = Given::Site(Path::new("north/site.toml"));
        for command in OF_SITES {
            let told = site.complete(&format!("do `consortia {command}`, or not"));
            assert_eq!(told, format!("do `consortia {command} north/site.toml`, or not"));
        }
        assert_eq!(site.complete("`consortia site check --plan`"), "`consortia site check --plan`");
        assert_eq!(site.complete("nothing to do"), "nothing to do");
        let server = Given::Server(Path::new("fed"));
        assert_eq!(
            server.complete("`consortia server dashboard` says how"),
            "`consortia server dashboard fed` says how"
        );
    }
}
