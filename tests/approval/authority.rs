//! The federation's root and what it signs, by the commands and, where it is installed, by OpenSSL.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use client::net::{Identity, Transport, probe};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::processes::{PATIENCE, command, serve};

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

/// The certificate that the server at `address` shows, DER.
fn shown(address: &str, operator: &Path, transport: Transport) -> Vec<u8> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let identity = Identity::load(operator).unwrap();
    let found = runtime.block_on(probe(&[address.to_owned()], transport, &identity, None, None)).unwrap();
    found.certificate.unwrap()
}

#[test]
fn renewed_certificates_are_shown_by_a_server_that_runs_and_sites_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (fed, operator) = (path(dir.path(), "fed"), dir.path().join("fed/operator"));
    command(&["server", "init", &fed, "--listen", "127.0.0.1:0", "--name", "fed.example.org"]);
    let (_server, address) = serve(&fed, "127.0.0.1:0");
    let read = |name: &str| std::fs::read_to_string(Path::new(&fed).join(name)).unwrap();
    let files = ["identity/cert.pem", "identity/key.pem", "operator/cert.pem", "authority/issuer.pem"];
    let before = files.map(read);
    let issuing_key = read("authority/issuer-key.pem");
    let said = command(&["server", "renew", &fed, "--name", "10.7.0.1"]);
    assert_eq!(said.as_array().unwrap().len(), 3, "{said}");
    let after = files.map(read);
    assert!(before.iter().zip(&after).all(|(before, after)| before != after));
    assert_eq!(read("authority/issuer-key.pem"), issuing_key, "what it signed before still stands");
    assert!(!dir.path().join("fed/identity.old").exists() && !dir.path().join("fed/identity.new").exists());
    if let Some((_, text)) =
        openssl(&["x509", "-noout", "-text", "-in", &path(dir.path(), "fed/identity/cert.pem")])
    {
        assert!(text.contains("DNS:fed.example.org") && text.contains("IP Address:10.7.0.1"), "{text}");
        assert_eq!(text.matches("DNS:localhost").count(), 1, "{text}");
    }

    let next = CertificateDer::from_pem_slice(after[0].as_bytes()).unwrap().to_vec();
    let began = std::time::Instant::now();
    while shown(&address, &operator, Transport::Quic) != next {
        assert!(began.elapsed() < PATIENCE, "the server still shows the certificate from before");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert_eq!(shown(&address, &operator, Transport::Tcp), next, "around what comes over TCP, too");
    // Whoever joins now is certified under the renewed issuing certificate.
    let made =
        command(&["invite", "create", "west", "--address", &address, "--dir", &fed, "--server", &address]);
    let (west, records) = (path(dir.path(), "west"), path(dir.path(), "west.csv"));
    std::fs::write(&records, "a,label\n1,0\n2,1\n").unwrap();
    let line = made[0]["invite"].as_str().unwrap();
    command(&["site", "join", line, "--dir", &west, "--data", &records, "--policy", "plain"]);
    let chain = std::fs::read_to_string(Path::new(&west).join("identity/cert.pem")).unwrap();
    assert!(chain.contains(after[3].trim_end()), "{chain}");

    // An operator elsewhere, and somebody who has not the root's key.
    let copied = dir.path().join("ada");
    std::fs::create_dir(&copied).unwrap();
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        std::fs::copy(operator.join(name), copied.join(name)).unwrap();
    }
    let ada = copied.to_str().unwrap();
    assert_eq!(command(&["server", "renew", &fed, "--operator", ada]).as_array().unwrap().len(), 1);
    assert_ne!(std::fs::read_to_string(copied.join("cert.pem")).unwrap(), after[2]);
    let (refused, said) = attempt(&["server", "renew", &fed, "--operator", &west], None);
    assert!(refused.status.code() == Some(2), "{said}");
    std::fs::remove_file(Path::new(&fed).join("authority/ca-key.pem")).unwrap();
    let (refused, said) = attempt(&["server", "renew", &fed], None);
    assert!(refused.status.code() == Some(2) && said.contains("--root-key"), "{said}");
}
