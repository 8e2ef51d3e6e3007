//! A site's books that are lost, copied, or whose program is killed at any instant.

use super::*;

/// Numbers that are the same in every run (SplitMix64; Steele, Lea and Flood 2014).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// How often a command is killed.
fn kills() -> u64 {
    if std::env::var_os("CONSORTIA_THOROUGH").is_some() { 200 } else { 3 }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The command with these arguments, to its end.
fn consortia(arguments: &[&str]) -> Output {
    let arguments = [&["--format", "json"], arguments].concat();
    Command::new(env!("CARGO_BIN_EXE_consortia")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

impl Stage {
    /// Lets a site train in one run of the plan, to its end: an answer that is still on its way when the site ends is in its books and not
    /// in the server's.
    fn train(&self, site: &Process, address: &str) {
        let fed = self.path("fed");
        let run = submit(text(&self.path("plan.toml")), text(&fed), address, None);
        let end = command(&["run", "watch", &run, "--dir", text(&fed), "--server", address]);
        assert_eq!(end["state"], "finished", "{end}");
        site.event("accepted");
    }

    /// Answers in the ledger of the site in `folder`.
    fn spent(folder: &Path) -> Result<u64, String> {
        let shown = consortia(&["budget", "show", text(folder)]);
        if !shown.status.success() {
            return Err(said(&shown));
        }
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        Ok(shown["without"].as_u64().unwrap() + shown["lost"].as_u64().unwrap())
    }
}

/// A process that was asked to end, once it has.
fn end(mut process: Process) {
    drop(process.child.stdin.take());
    assert!(process.child.wait().unwrap().success());
}

#[test]
fn a_site_without_its_ledger_does_not_start_and_every_command_names_the_one_that_puts_it_in_order() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let site = stage.run();
    site.event("connected");
    stage.train(&site, &address);
    end(site);
    let (folder, ledger) = (stage.path("site"), stage.path("site/state/ledger.jsonl"));
    let (spent, kept) = (Stage::spent(&folder).unwrap(), std::fs::read(&ledger).unwrap());
    assert!(spent >= 2);
    message(&stage.check(&["--offline"]).1, "books", "ok");

    std::fs::remove_file(&ledger).unwrap();
    let refused = stage.site("run", &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("ledger.jsonl has 0 records") && said(&refused).contains("site recover"));
    assert!(!ledger.exists(), "nothing was begun anew");
    assert!(message(&stage.check(&["--offline"]).1, "books", "fail").contains("site recover"));
    assert!(Stage::spent(&folder).unwrap_err().contains("site recover"));
    let verified = consortia(&["audit", "verify", text(&folder)]);
    assert!(verified.status.code() == Some(1) && said(&verified).contains("site recover"), "{verified:?}");

    let recovered = stage.site("recover", &[]);
    assert!(recovered.status.success(), "{recovered:?}");
    let recovered: Value = serde_json::from_slice(&recovered.stdout).unwrap();
    assert_eq!(recovered["lost"], 0);
    assert!(recovered["restored"].as_u64().unwrap() >= spent);
    assert_eq!(std::fs::read(&ledger).unwrap(), kept);
    assert!(consortia(&["audit", "verify", text(&folder)]).status.success());
    let site = stage.run();
    site.event("connected");
    assert_eq!(stage.records("recovered")[0]["restored"], recovered["restored"]);
}

#[test]
fn a_site_whose_books_are_all_gone_does_not_start_anew_and_names_what_to_do() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    assert_eq!(Stage::spent(&stage.path("site")), Ok(0), "a new site has books that are not begun");
    assert!(stage.site("recover", &[]).status.success(), "and none to lose");
    let site = stage.run();
    site.event("connected");
    stage.train(&site, &address);
    end(site);
    let (folder, file, state) = (stage.path("site"), stage.path("site/site.toml"), stage.path("site/state"));
    let advice = format!("site recover --believe-server {}", file.display());

    std::fs::remove_dir_all(&state).unwrap();
    for is_empty in [false, true] {
        if is_empty {
            std::fs::create_dir(&state).unwrap();
        }
        let refused = stage.site("run", &[]);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(said(&refused).contains(&advice), "{}", said(&refused));
        let matter = if is_empty { "books" } else { "state" };
        assert!(message(&stage.check(&["--offline"]).1, matter, "fail").contains(&advice));
        assert!(Stage::spent(&folder).unwrap_err().contains(&advice));
        let verified = consortia(&["audit", "verify", text(&folder)]);
        assert!(verified.status.code() == Some(1) && said(&verified).contains(&advice), "{verified:?}");
        let left = stage.site("leave", &["--yes"]);
        assert!(left.status.code() == Some(2) && said(&left).contains(&advice), "{left:?}");
        assert_eq!(state.exists(), is_empty, "nothing was begun anew");
    }

    // A loss without a bound is charged; what the server remembers beyond that, a person must decide.
    let recovered = stage.site("recover", &[]);
    assert!(recovered.status.success(), "{recovered:?}");
    let recovered: Value = serde_json::from_slice(&recovered.stdout).unwrap();
    assert_eq!(recovered["lost"], 1);
    assert_eq!(recovered["unbounded"].as_array().unwrap().len(), 2);
    let refused = stage.site("run", &[]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(said(&refused).contains(&advice), "{}", said(&refused));
    assert!(stage.site("recover", &["--believe-server"]).status.success());
    let site = stage.run();
    site.event("connected");
}

#[test]
fn a_site_that_was_let_in_with_an_empty_ledger_comes_back_when_it_believes_the_server() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let site = stage.run();
    site.event("connected");
    // More updates than a recovery makes records.
    for _ in 0..2 {
        stage.train(&site, &address);
    }
    end(site);
    std::fs::remove_dir_all(stage.path("site/state")).unwrap();
    assert!(stage.site("recover", &[]).status.success());
    assert_eq!(stage.site("run", &[]).status.code(), Some(3));
    let believed = stage.site("recover", &["--believe-server"]);
    assert!(believed.status.success(), "{believed:?}");
    let lost = serde_json::from_slice::<Value>(&believed.stdout).unwrap()["lost"].as_u64().unwrap();
    assert!(lost >= 4, "{lost}");
    let site = stage.run();
    site.event("connected");
    end(site);
    let again = stage.site("recover", &["--believe-server"]);
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(again["recovered"], false, "it is charged once");
}

#[test]
fn half_a_line_of_a_book_starts_no_site_with_its_whole_budget() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let site = stage.run();
    site.event("connected");
    stage.train(&site, &address);
    end(site);
    let whole = stage.path("whole");
    copy(&stage.path("site"), &whole);
    for torn in [&["audit.jsonl"][..], &["ledger.jsonl"], &["ledger.jsonl", "audit.jsonl", "heads.json"]] {
        for name in ["audit.jsonl", "ledger.jsonl", "heads.json"] {
            let (from, to) = (whole.join("state").join(name), stage.path("site/state").join(name));
            match torn.contains(&name) {
                true => std::fs::write(to, &std::fs::read(from).unwrap()[..40]).unwrap(),
                false => drop(std::fs::remove_file(to)),
            }
        }
        let refused = stage.site("run", &["--while-stdin-open"]);
        assert_eq!(refused.status.code(), Some(2), "{torn:?}: {}", said(&refused));
        assert!(
            message(&stage.check(&["--offline"]).1, "books", "fail").contains("site recover"),
            "{torn:?}"
        );
        let recovered = stage.site("recover", &[]);
        let recovered: Value = serde_json::from_slice(&recovered.stdout).unwrap();
        assert_eq!(recovered["unbounded"].as_array().unwrap().len(), 2, "{torn:?}");
    }
}

#[test]
fn books_are_opened_under_no_other_site_s_identity() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    command(&["server", "issue", "south", "--dir", text(&stage.path("fed"))]);
    let (other, state) = (stage.path("other"), stage.path("site/state"));
    let bundle = stage.path("fed/sites/south");
    let server = ["--server", &address, "--bundle", text(&bundle), "--policy", "plain"];
    command(&[&["site", "init", text(&other)][..], &server].concat());
    std::fs::copy(stage.path("site/data.csv"), other.join("data.csv")).unwrap();
    let run = |file: &Path| Process::start(&["site", "run", text(file), "--while-stdin-open"]);
    let (own, mixed) = (other.join("site.toml"), other.join("mixed.toml"));
    let written = std::fs::read_to_string(&own).unwrap();
    let foreign = format!("state = {}", toml::Value::from(text(&state)));
    std::fs::write(&mixed, written.replace("state = \"state\"", &foreign)).unwrap();
    let south = run(&own);
    south.event("connected");
    end(south);
    let site = stage.run();
    site.event("connected");
    stage.train(&site, &address);
    end(site);

    let before = std::fs::read(state.join("audit.jsonl")).unwrap();
    for command in [&["run"][..], &["check"], &["recover"], &["leave", "--yes"], &["audit"]] {
        let refused = consortia(&[&["site", command[0], text(&mixed)], &command[1..]].concat());
        let told = String::from_utf8_lossy(&refused.stdout).into_owned() + &said(&refused);
        assert!(matches!(refused.status.code(), Some(2 | 3)), "{command:?}: {refused:?}");
        for word in ["holds the books of site `north`", "identity of site `south`", "owner.json"] {
            assert!(told.contains(word), "{command:?}: {told}");
        }
    }
    let third = stage.path("third");
    std::fs::create_dir(&third).unwrap();
    let identity = format!("identity = {}", toml::Value::from(text(&other.join("identity"))));
    let mixed_folder = std::fs::read_to_string(&mixed).unwrap().replace("identity = \"identity\"", &identity);
    std::fs::write(third.join("site.toml"), mixed_folder).unwrap();
    for command in [["budget", "show"], ["audit", "verify"]] {
        let refused = consortia(&[&command[..], &[text(&third)]].concat());
        assert_eq!(refused.status.code(), Some(1), "{command:?}: {refused:?}");
        assert!(
            said(&refused).contains("holds the books of site `north`"),
            "{command:?}: {}",
            said(&refused)
        );
    }
    assert_eq!(std::fs::read(state.join("audit.jsonl")).unwrap(), before, "nothing was written");
    assert!(other.join("identity/key.pem").exists());
    // A release before wrote no such file; what a check claims is not remembered all the same.
    let owner = state.join("owner.json");
    let kept = std::fs::read(&owner).unwrap();
    std::fs::remove_file(&owner).unwrap();
    consortia(&["site", "check", text(&mixed)]);
    assert!(!owner.exists(), "a check writes nothing");
    let south = run(&own);
    south.event("connected");
    end(south);
    // It is taken over at the next start.
    let site = stage.run();
    site.event("connected");
    assert_eq!(std::fs::read(&owner).unwrap(), kept);
}

#[test]
fn a_copied_folder_is_refused_with_words_on_both_sides_and_goes_on_only_when_it_has_paid() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let site = stage.run();
    site.event("connected");
    stage.train(&site, &address);
    end(site);
    copy(&stage.path("site"), &stage.path("copy"));
    let site = stage.run();
    site.event("connected");
    stage.train(&site, &address);
    end(site);

    // The copy has what was shown last, and the server has had updates since then.
    let file = stage.path("copy/site.toml");
    let refused = consortia(&["site", "run", text(&file)]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(said(&refused).contains("the server remembers a ledger of this site"), "{}", said(&refused));
    let log = std::fs::read_to_string(stage.path("fed/state/audit.jsonl")).unwrap();
    assert!(log.contains("\"ledger_refused\""), "{log}");
    let before = Stage::spent(&stage.path("copy")).unwrap();
    // Without a person's word the server's changes nothing.
    assert!(consortia(&["site", "recover", text(&file)]).status.success());
    assert_eq!(Stage::spent(&stage.path("copy")).unwrap(), before);
    assert!(consortia(&["site", "recover", text(&file), "--believe-server"]).status.success());
    assert!(Stage::spent(&stage.path("copy")).unwrap() >= Stage::spent(&stage.path("site")).unwrap());
    let copied = Process::start(&["site", "run", text(&file), "--while-stdin-open"]);
    copied.event("connected");
    end(copied);
    let refused = stage.site("run", &[]);
    assert_eq!(refused.status.code(), Some(3), "one of the two goes on: {}", said(&refused));
}

#[test]
fn a_site_s_command_killed_at_any_instant_leaves_books_that_know_what_was_spent() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    let site = stage.run();
    site.event("connected");
    stage.train(&site, &address);
    end(site);
    let spent = Stage::spent(&stage.path("site")).unwrap();
    let mut numbers = Numbers(41);
    for words in
        [&["run"][..], &["recover"], &["recover", "--believe-server"], &["renew"], &["leave", "--yes"]]
    {
        for time in 0..kills() {
            let folder = stage.path(&format!("{}-{time}", words.join("")));
            copy(&stage.path("site"), &folder);
            if words[0] == "recover" {
                std::fs::remove_file(folder.join("state/ledger.jsonl")).unwrap();
            }
            let file = folder.join("site.toml");
            let process = Process::start(&[&["site", words[0], text(&file)], &words[1..]].concat());
            std::thread::sleep(Duration::from_millis(numbers.below(150)));
            process.kill();
            if let Err(refused) = Stage::spent(&folder) {
                assert!(refused.contains("site recover"), "{words:?}: {refused}");
                let recovered = consortia(&["site", "recover", text(&file)]);
                assert!(recovered.status.success(), "{words:?}: {}", said(&recovered));
            }
            assert!(Stage::spent(&folder).unwrap() >= spent, "{words:?}");
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
}

#[test]
fn a_join_killed_at_any_instant_is_given_again() {
    let stage = Stage::new();
    let federation = stage.path("fed");
    let (_server, address) = serve(text(&federation), "127.0.0.1:0");
    let mut numbers = Numbers(43);
    for time in 0..kills() {
        let name = format!("south-{time}");
        let at = ["--address", &address, "--server", &address, "--dir", text(&federation)];
        let invited = command(&[&["invite", "create", &name], &at[..]].concat());
        let invite = invited[0]["invite"].as_str().unwrap_or_else(|| panic!("{invited}"));
        let folder = stage.path(&name);
        let arguments = ["site", "join", invite, "--dir", text(&folder), "--policy", "plain"];
        let process = Process::start(&arguments);
        std::thread::sleep(Duration::from_millis(numbers.below(250)));
        process.kill();
        // Whatever was done by then, the same command does the rest, unless nothing is left to be done.
        let was_done = folder.join("site.toml").exists();
        let again = consortia(&arguments);
        let words = said(&again);
        let is_told = was_done && words.contains("holds a site already");
        assert!(again.status.success() != was_done && (is_told || !was_done), "{words}");
        assert_eq!(Stage::spent(&folder).unwrap(), 0);
    }
}

#[test]
fn no_damaged_file_of_a_site_starts_it_with_less_than_it_has_spent() {
    let stage = Stage::new();
    let (_server, address) = serve(text(&stage.path("fed")), "127.0.0.1:0");
    stage.point_to(&address);
    for folder in ["older", "newer"] {
        let site = stage.run();
        site.event("connected");
        stage.train(&site, &address);
        end(site);
        copy(&stage.path("site"), &stage.path(folder));
    }
    let spent = Stage::spent(&stage.path("site")).unwrap();
    let mut numbers = Numbers(47);
    let files = [
        "identity/ca.pem",
        "identity/cert.pem",
        "identity/key.pem",
        "policy.toml",
        "state/audit.jsonl",
        "state/heads.json",
        "state/ledger.jsonl",
    ];
    for name in files {
        for time in 0..kills() {
            let folder = stage.path("damaged");
            copy(&stage.path("site"), &folder);
            let (file, mut bytes) = (folder.join(name), std::fs::read(folder.join(name)).unwrap());
            let length = bytes.len() as u64;
            let at = usize::try_from(numbers.below(length.max(1))).unwrap();
            let what = match numbers.below(4) {
                0 if !bytes.is_empty() => {
                    bytes[at] ^= 1 << numbers.below(8);
                    std::fs::write(&file, &bytes).unwrap();
                    format!("byte {at} of {name} is changed")
                }
                1 => {
                    std::fs::write(&file, &bytes[..at]).unwrap();
                    format!("{name} is cut to {at} bytes")
                }
                2 => {
                    std::fs::remove_file(&file).unwrap();
                    format!("{name} is removed")
                }
                _ => {
                    std::fs::copy(stage.path("older").join(name), &file).unwrap();
                    format!("{name} is an older copy")
                }
            };
            // Its stdin is closed: it starts, and ends in order.
            let started = consortia(&["site", "run", text(&folder.join("site.toml")), "--while-stdin-open"]);
            assert!(started.status.success() || said(&started).len() > 40, "{what} ({time}): {started:?}");
            match Stage::spent(&folder) {
                Ok(now) => assert!(now >= spent, "{what}"),
                Err(refused) => {
                    assert!(!started.status.success(), "{what}: {refused}");
                    assert!(
                        ["site recover", "policy", "holds the books of"]
                            .iter()
                            .any(|word| refused.contains(word)),
                        "{what}: {refused}"
                    );
                }
            }
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
}
