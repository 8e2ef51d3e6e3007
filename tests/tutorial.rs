//! docs/tutorial.md, typed as it stands: three hospitals in folders and processes of their own, ten commands, a private model.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PAGE: &str = include_str!("../docs/tutorial.md");
/// The port of the page.
const PORT: &str = "4433";
/// What stands in the page for a line that nobody can know before.
const LINE: &str = "consortia-invite-...";

/// The text of the fenced blocks that begin with this word.
fn blocks(fence: &str) -> Vec<&'static str> {
    let begin = format!("```{fence}\n");
    PAGE.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().trim()).collect()
}

/// A shell in `folder` in which `consortia` is this build, and nothing else on the path is ours, on a port of the test's own.
fn shell(folder: &Path, port: u16, line: &str) -> Command {
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", folder.with_extension("program").display());
    let mut shell = Command::new("bash");
    shell.current_dir(folder).env("PATH", path);
    shell.arg("-c").arg(line.replace(PORT, &port.to_string()));
    shell
}

fn typed(folder: &Path, port: u16, line: &str) -> String {
    let Output { status, stdout, stderr } = shell(folder, port, line).output().unwrap();
    let (said, talk) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "`{line}` ended with {status}: {said}{talk}");
    said.into_owned()
}

/// A command in a terminal of its own, ended with the test.
struct Terminal(Child);

impl Terminal {
    fn open(folder: &Path, port: u16, line: &str) -> Self {
        let mut shell = shell(folder, port, &format!("exec {line}"));
        Self(shell.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(what: &str, there: impl Fn() -> bool) {
    let began = Instant::now();
    while !there() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The invite line for the site whose folder a command names.
fn paste(command: &str, invites: &str) -> String {
    let site = command.split("--dir ").nth(1).unwrap().split(' ').next().unwrap();
    let of_site = invites.split(&format!("{site}: good once")).nth(1).unwrap();
    let line = of_site.split_whitespace().find(|word| word.starts_with("consortia-invite-")).unwrap();
    command.replace(LINE, line)
}

/// Whether any file below holds these bytes.
fn holds(folder: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            return holds(&path, needle);
        }
        std::fs::read(path).unwrap().windows(needle.len()).any(|part| part == needle)
    })
}

#[test]
fn the_page_does_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let folder = &dir.path().join("empty");
    let program = folder.with_extension("program");
    std::fs::create_dir(folder).unwrap();
    std::fs::create_dir(&program).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_consortia"), program.join("consortia")).unwrap();
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    blocks("sh setup").into_iter().for_each(|line| drop(typed(folder, port, line)));
    std::fs::write(folder.join("heart.toml"), blocks("toml plan")[0]).unwrap();

    let commands: Vec<&str> = blocks("sh").into_iter().flat_map(str::lines).collect();
    assert_eq!(commands.len(), 10, "the page promises ten commands: {commands:?}");
    let (mut terminals, mut invites, mut told) = (Vec::new(), String::new(), String::new());
    for command in commands {
        if command.contains(" run fed") || command.starts_with("consortia site run") {
            terminals.push(Terminal::open(folder, port, command));
            // Whoever types is slower than this.
            wait_for("the server listens", || UdpSocket::bind(("127.0.0.1", port)).is_err());
        } else if command.contains(LINE) {
            typed(folder, port, &paste(command, &invites));
        } else {
            told = typed(folder, port, command);
            if command.starts_with("consortia server init") {
                // The admin port of a fresh file is a fixed one.
                let file = folder.join("fed/server.toml");
                let text = std::fs::read_to_string(&file).unwrap();
                std::fs::write(file, text.replace("127.0.0.1:4434", "127.0.0.1:0")).unwrap();
            }
            if command.starts_with("consortia invite") {
                invites.clone_from(&told);
            }
        }
    }
    assert!(told.contains("finished") && told.contains("rounds 20/20"), "{told}");

    let checks: Vec<&str> = blocks("sh check").into_iter().flat_map(str::lines).collect();
    let said: Vec<String> = checks.iter().map(|command| typed(folder, port, command)).collect();
    let statement = std::fs::read_to_string(folder.join("model/privacy_statement.json")).unwrap();
    assert!(statement.contains("epsilon at most 1 at delta 1e-5"), "{statement}");
    assert!(
        said[4].lines().count() >= 7,
        "the operator's log, and a log and a ledger of each site: {}",
        said[4]
    );
    for site in ["cleveland", "hungarian", "va"] {
        let key = std::fs::read_to_string(folder.join(site).join("identity/key.pem")).unwrap();
        let needle = key.lines().nth(1).unwrap().as_bytes();
        for elsewhere in ["fed", "cleveland", "hungarian", "va"].into_iter().filter(|one| *one != site) {
            assert!(!holds(&folder.join(elsewhere), needle), "the key of {site} is in {elsewhere}");
        }
    }
}
