//! The federation's root and what it signs, by the commands and, where it is installed, by OpenSSL.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::processes::{command, serve};

const WORDS: &str = "tusk amber nine ferry";

/// A command of ours that may fail, with the root's passphrase in its environment where there is one.
fn attempt(words: &[&str], passphrase: Option<&str>) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consortia"));
    command.args(words).env_remove("CONSORTIA_ROOT_PASSPHRASE");
    passphrase.map(|words| command.env("CONSORTIA_ROOT_PASSPHRASE", words));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// What OpenSSL says to these words; `None` where it is not installed.
fn openssl(words: &[&str]) -> Option<(bool, String)> {
    match Command::new("openssl").args(words).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
        }
        Err(_) => {
            println!("SKIPPED: openssl is not installed; install Debian's package openssl");
            None
        }
    }
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_root_s_key_under_a_passphrase_leaves_the_server_and_is_asked_for_only_where_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (fed, words) = (path(dir.path(), "fed"), path(dir.path(), "words"));
    std::fs::write(&words, "too short\n").unwrap();
    let init = ["server", "init", &fed, "--listen", "127.0.0.1:0", "--passphrase-file", &words];
    let (short, said) = attempt(&init, None);
    assert!(short.status.code() == Some(2) && said.contains("12 characters"), "{said}");
    std::fs::write(&words, format!("{WORDS}\n")).unwrap();
    assert_eq!(command(&init)["root_key_encrypted"], true);
    let key = PathBuf::from(&fed).join("authority/ca-key.pem");
    let pem = std::fs::read_to_string(&key).unwrap();
    assert!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"), "{pem}");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    for (passphrase, opens) in [(WORDS, true), ("tusk amber nine fairy", false)] {
        let given = format!("pass:{passphrase}");
        if let Some((opened, said)) =
            openssl(&["pkey", "-in", key.to_str().unwrap(), "-passin", &given, "-noout"])
        {
            assert_eq!(opened, opens, "{said}");
        }
    }

    let issue = |site: &'static str, more: &[&str], passphrase| {
        attempt(&[&["server", "issue", site, "--dir", &fed][..], more].concat(), passphrase)
    };
    let (refused, said) = issue("north", &[], None);
    assert!(refused.status.code() == Some(2) && said.contains("CONSORTIA_ROOT_PASSPHRASE"), "{said}");
    let (refused, said) = issue("north", &[], Some("tusk amber nine fairy"));
    assert!(refused.status.code() == Some(2) && said.contains("does not open"), "{said}");
    assert!(!said.contains("fairy"), "a passphrase is never shown: {said}");
    assert!(issue("north", &[], Some(WORDS)).0.status.success());

    // From here on the key is elsewhere; the server runs and invites without it.
    let kept = path(dir.path(), "kept.pem");
    std::fs::rename(&key, &kept).unwrap();
    let (_server, address) = serve(&fed, "127.0.0.1:0");
    command(&["invite", "create", "west", "--address", &address, "--dir", &fed, "--server", &address]);
    let (refused, said) = issue("south", &[], Some(WORDS));
    assert!(refused.status.code() == Some(2) && said.contains("--root-key"), "{said}");
    assert!(issue("south", &["--root-key", &kept, "--passphrase-file", &words], None).0.status.success());
    let other = path(dir.path(), "other");
    command(&["server", "init", &other]);
    let foreign = format!("{other}/authority/ca-key.pem");
    let (refused, said) = issue("east", &["--root-key", &foreign], None);
    assert!(refused.status.code() == Some(2) && said.contains("did not sign"), "{said}");
}

#[test]
fn openssl_finds_a_revoked_site_s_certificate_in_the_list_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let fed = path(dir.path(), "fed");
    command(&["server", "init", &fed, "--listen", "127.0.0.1:0"]);
    let (server, address) = serve(&fed, "127.0.0.1:0");
    let operator = |words: &[&str]| command(&[words, &["--dir", &fed, "--server", &address]].concat());
    let invite = |site: &str| {
        let made = operator(&["invite", "create", site, "--address", &address]);
        made[0]["invite"].as_str().unwrap().to_owned()
    };
    let join = |site: &str, folder: &str| {
        command(&["site", "join", &invite(site), "--dir", folder]);
        format!("{folder}/identity/cert.pem")
    };
    let list = path(dir.path(), "crl.pem");
    let write = || command(&["server", "crl", "--dir", &fed, "--output", &list])["revoked"].as_u64().unwrap();
    let (north, south) =
        (join("north", &path(dir.path(), "north")), join("south", &path(dir.path(), "south")));
    assert_eq!(write(), 0);
    operator(&["site", "revoke", "north"]);
    assert_eq!(write(), 1);
    // One that came back with a new invite has a certificate that is good.
    let again = join("north", &path(dir.path(), "north-2"));
    assert_eq!(write(), 1);
    let (root, issuer) = (format!("{fed}/authority/ca.pem"), format!("{fed}/authority/issuer.pem"));
    if let Some((read, text)) = openssl(&["crl", "-in", &list, "-noout", "-text", "-CAfile", &issuer]) {
        assert!(read && text.matches("Serial Number:").count() == 1 && text.contains("verify OK"), "{text}");
    }
    for (certificate, good) in [(&north, false), (&south, true), (&again, true)] {
        let words =
            ["verify", "-crl_check", "-CAfile", &root, "-untrusted", &issuer, "-CRLfile", &list, certificate];
        if let Some((verified, said)) = openssl(&words) {
            assert_eq!(verified, good, "{certificate}: {said}");
            assert!(good || said.contains("certificate revoked"), "{said}");
        }
    }
    server.kill();
}
