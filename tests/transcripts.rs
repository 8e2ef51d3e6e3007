//! What README and the how-tos show is typed as it stands, each page in an empty folder of its own where nothing but the program is on the
//! path, and what comes out is compared. Ports are another test's, and so are free ones here.
//!
//! In a page ```` ```console ```` is typed, `console terminal` goes on in a terminal of its own, `toml file=NAME` is written down, and
//! `console not-run="why"` is left out and counted here. `[..]` stands for what differs, a line `...` for any lines.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic, and wait for real time to pass"
)]

#[path = "transcripts/page.rs"]
mod page;

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use page::{Kind, Step, blocks, is_output};

/// The pages whose transcripts run, and how many of their blocks do not.
const PAGES: [(&str, usize); 6] = [
    ("README.md", 1),
    ("docs/own-model.md", 0),
    ("docs/own-data.md", 0),
    ("docs/privacy-choice.md", 0),
    ("docs/federation.md", 0),
    ("docs/operations.md", 14),
];
/// What stands in a page for a line that nobody can know before.
const LINE: &str = "consortia-invite-...";
const PATIENCE: Duration = Duration::from_secs(60);

/// A port that nobody has, for UDP and for TCP.
fn free_port() -> u16 {
    let ports =
        std::iter::repeat_with(|| UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    ports.take(100).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

/// A reader at a machine: a folder, a port, and what goes on in other terminals.
struct Reader {
    folder: tempfile::TempDir,
    /// Holds the program, and nothing else.
    program: tempfile::TempDir,
    port: u16,
    admin_port: u16,
    terminals: Vec<Child>,
    invites: String,
}

impl Drop for Reader {
    fn drop(&mut self) {
        for terminal in &mut self.terminals {
            let _ = terminal.kill();
            let _ = terminal.wait();
        }
    }
}

impl Reader {
    fn new() -> Self {
        let (folder, program) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_consortia"), program.path().join("consortia"))
            .unwrap();
        let (port, admin_port) =
            (free_port(), TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        Self { folder, program, port, admin_port, terminals: Vec::new(), invites: String::new() }
    }

    /// The page's ports are not this test's.
    fn here(&self, text: &str) -> String {
        text.replace("4433", &self.port.to_string()).replace("4434", &self.admin_port.to_string())
    }

    fn shell(&self, command: &str) -> Command {
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", self.program.path().display());
        let mut shell = Command::new("bash");
        shell.current_dir(self.folder.path()).env("PATH", path).env_remove("CONSORTIA_FORMAT");
        let mut command = self.here(&self.pasted(command));
        if let Some((before, example)) = command.split_once("cargo run --example ") {
            let built =
                Path::new(env!("CARGO_BIN_EXE_consortia")).parent().unwrap().join("examples").join(example);
            // A whole `cargo test` builds them beside the program.
            assert!(built.exists(), "{} is not there: `cargo build --examples`", built.display());
            command = format!("{before}{}", built.display());
        }
        shell.arg("-c").arg(command).stdin(Stdio::null());
        shell
    }

    /// The command with the invite of the site that it joins.
    fn pasted(&self, command: &str) -> String {
        if !command.contains(LINE) {
            return command.to_owned();
        }
        let site = command.split("--dir ").nth(1).unwrap().split(' ').next().unwrap();
        let of_site = self.invites.split(&format!("{site}: good once")).nth(1);
        let of_site = of_site.unwrap_or_else(|| panic!("nobody invited {site}: {}", self.invites));
        let line = of_site.split_whitespace().find(|word| word.starts_with("consortia-invite-")).unwrap();
        command.replace(LINE, line)
    }

    /// Types a command, and says what came out when it is not what the page shows.
    fn type_in(&mut self, step: &Step<'_>) -> Result<(), String> {
        let output = self.shell(&format!("exec 2>&1; {}", step.command)).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        if step.command.starts_with("consortia invite create") {
            self.invites.clone_from(&said);
        }
        if step.command.starts_with("consortia server init") {
            self.free_admin_port();
        }
        let shown: Vec<String> = step.output.iter().map(|line| self.here(line)).collect();
        // How far a search is, a command tells on slow machines alone.
        let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("searching: ")).collect();
        match output.status.success() && is_output(&shown, &lines) {
            true => Ok(()),
            false => Err(format!("`{}` ended with {} and said\n{said}", step.command, output.status)),
        }
    }

    /// What a command says, which must end well.
    fn output(&self, command: &str) -> Result<String, String> {
        let output = self.shell(&format!("exec 2>&1; {command}")).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        if output.status.success() {
            Ok(said)
        } else {
            Err(format!("ended with {} and said\n{said}", output.status))
        }
    }

    /// Does what a line of hints says, for a site.
    fn follow(&mut self, line: &str, hint: &str, site: &str) -> Result<(), String> {
        if let Some((_, setting)) = line.split_once(": ").filter(|_| !line.starts_with("consortia ")) {
            let file = self.folder.path().join(site).join("site.toml");
            let text = std::fs::read_to_string(&file).unwrap();
            let changed = if line.contains("at the top") {
                let numbers =
                    ["cleveland", "hungarian", "switzerland", "va"].iter().position(|name| *name == site);
                let number = hint.split_once('(').unwrap().1.split(", ").nth(numbers.unwrap()).unwrap();
                format!("{}\n{text}", setting.replace("NUMBER", number))
            } else {
                text.replacen("[data.csv]\n", &format!("[data.csv]\n{setting}\n"), 1)
            };
            std::fs::write(file, changed).unwrap();
            return Ok(());
        }
        let line = line.replace("SITE", site).replace("LINE", LINE);
        // The port is another test's.
        let listen = if line.contains("server init") { " --listen 127.0.0.1:4433" } else { "" };
        let step = Step { line: self.terminals.len(), command: line + listen, output: vec!["..."] };
        if step.command.contains(" run fed") || step.command.contains("site run") {
            let output =
                if step.command.contains("site run") { "[..]connected to [..]" } else { "listening on [..]" };
            return self.open_terminal(&Step { output: vec!["...", output], ..step });
        }
        self.type_in(&step)
    }

    /// Nothing in a test listens on a fixed port.
    fn free_admin_port(&self) {
        let file = self.folder.path().join("fed/server.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, self.here(&text)).unwrap();
    }

    /// Begins a command in another terminal and waits for what the page shows of it.
    fn open_terminal(&mut self, step: &Step<'_>) -> Result<(), String> {
        let log: PathBuf = self.folder.path().join(format!("terminal-{}", step.line));
        let mut shell = self.shell(&format!("exec {}", step.command));
        shell.stdout(File::create(&log).unwrap()).stderr(File::options().append(true).open(&log).unwrap());
        self.terminals.push(shell.process_group(0).spawn().unwrap());
        let shown: Vec<String> =
            step.output.iter().map(|line| self.here(line)).chain(["...".to_owned()]).collect();
        let began = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log).unwrap();
            if is_output(&shown, &said.lines().collect::<Vec<_>>()) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("`{}` said\n{said}", step.command));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Types the page, and complains of every command that did not do what it says.
fn type_page(name: &str) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let (mut reader, mut faults, mut typed) = (Reader::new(), Vec::new(), 0);
    for block in blocks(&text) {
        let done: Vec<(usize, Result<(), String>)> = match block.kind {
            Kind::Typed => block.steps().iter().map(|step| (step.line, reader.type_in(step))).collect(),
            Kind::Terminal => {
                block.steps().iter().map(|step| (step.line, reader.open_terminal(step))).collect()
            }
            Kind::File(file) => {
                std::fs::write(reader.folder.path().join(file), block.lines.join("\n") + "\n").unwrap();
                Vec::new()
            }
            Kind::NotRun(_) | Kind::Shown => Vec::new(),
        };
        typed += done.len();
        let wrong = done.into_iter().filter_map(|(line, done)| Some((line, done.err()?)));
        faults.extend(wrong.map(|(line, fault)| format!("{name}:{line}: {fault}")));
    }
    assert!(typed > 0, "{name} has no transcript");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_tour_of_the_readme_does_what_it_shows() {
    type_page("README.md");
}

#[test]
fn the_page_on_models_does_what_it_shows() {
    type_page("docs/own-model.md");
}

#[test]
fn the_page_on_data_does_what_it_shows() {
    type_page("docs/own-data.md");
}

#[test]
fn the_page_on_privacy_does_what_it_shows() {
    type_page("docs/privacy-choice.md");
}

#[test]
fn the_page_of_settings_does_what_it_shows() {
    type_page("docs/federation.md");
}

#[test]
fn the_page_of_operations_does_what_it_shows() {
    type_page("docs/operations.md");
}

/// Types what the demo says at its end, in the folder in which it ran: each site's lines for each site.
fn type_hints(demo: &str) {
    let mut reader = Reader::new();
    let said = reader.output(demo).unwrap();
    let hints = said.find("\nthe same").map(|at| &said[at..]).unwrap();
    let hints: Vec<&str> = hints.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let sites = ["cleveland", "hungarian", "switzerland", "va"];
    let mut typed = 0;
    for hint in &hints {
        let line = hint.split("   ").next().unwrap();
        for site in sites.iter().take(if line.contains("SITE") || line.starts_with("and, ") { 4 } else { 1 })
        {
            typed += 1;
            reader.follow(line, hint, site).unwrap_or_else(|fault| panic!("`{demo}` says `{hint}`: {fault}"));
        }
    }
    assert!(typed > 15, "{hints:?}");
}

#[test]
fn what_the_demo_says_to_do_next_can_be_done() {
    type_hints("consortia demo");
}

#[test]
fn what_the_private_demo_says_to_do_next_can_be_done() {
    type_hints("consortia demo --private");
}

#[test]
fn no_command_of_these_pages_is_forgotten() {
    let mut faults = Vec::new();
    for (name, not_run) in PAGES {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        let blocks = blocks(&text);
        let reasons = blocks.iter().filter_map(|block| match block.kind {
            Kind::NotRun(why) => Some(why),
            Kind::Typed | Kind::Terminal | Kind::File(_) | Kind::Shown => None,
        });
        let reasons: Vec<&str> = reasons.collect();
        if reasons.len() != not_run || reasons.iter().any(|why| why.split(' ').count() < 2) {
            faults
                .push(format!("{name}: {not_run} blocks should say why they are not run; found {reasons:?}"));
        }
        for block in blocks.iter().filter(|block| matches!(block.kind, Kind::Shown)) {
            let typed = |line: &&str| line.starts_with("consortia ") || line.starts_with("$ ");
            if let Some(line) = block.lines.iter().find(|line| typed(line)) {
                faults.push(format!(
                    "{name}:{}: `{line}` is shown and not run; make it ```console",
                    block.line
                ));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
