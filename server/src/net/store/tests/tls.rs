//! A line to PostgreSQL under TLS: the right server is known by its certificate, another one is not spoken to.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::super::Store;
use super::super::place::postgres;
use super::*;

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Puts a file into the server's folder that the server may read, and nobody else.
fn put(data: &Path, name: &str, text: &str) {
    let path = data.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let owner = std::fs::metadata(data).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

#[tokio::test]
async fn a_database_is_spoken_to_under_tls_if_its_certificate_has_its_name_and_leads_to_the_root() {
    let (root, stranger) = (authority("the database's root"), authority("another root"));
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = postgres::Postgres::start_with(|data| {
        put(data, "server.crt", &certificate.pem());
        put(data, "server.key", &key.serialize_pem());
        // Over TCP nobody is let in without TLS.
        put(data, "pg_hba.conf", "local all all trust\nhostssl all all 127.0.0.1/32 trust\n");
        ["listen_addresses=127.0.0.1", &format!("port={port}"), "ssl=on"].map(str::to_owned).to_vec()
    });
    let Some(server) = server else { return };
    let (dir, made) = (tempfile::tempdir().unwrap(), server.database());
    let name = made.split_once("localhost/").unwrap().1.split_once('?').unwrap().0;
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (root, stranger) = (file("root.pem", root.pem()), file("stranger.pem", stranger.pem()));
    let lead = async |host: &str, tls: &str| {
        let url = format!("postgres://postgres@{host}:{port}/{name}?{tls}");
        let database = Database::Postgres(Postgres::new(&url, None, "a").unwrap());
        let led = tokio::time::timeout(ACQUIRE * 3, Store::lead(&dir.path().join("state"), &database)).await;
        led.unwrap_or_else(|_| panic!("{host} {tls}: it waits for what never comes"))
    };
    let full = format!("sslmode=verify-full&sslrootcert={root}");
    let store = lead("localhost", &full).await.unwrap();
    let sql = "SELECT bool_and(ssl) AND count(*) > 0 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL";
    assert_eq!(server.query(&made, sql), "t");
    store.close().await;
    drop(store);
    let refused = [
        ("127.0.0.1", full),
        ("localhost", format!("sslmode=verify-full&sslrootcert={stranger}")),
        ("localhost", "sslmode=disable".to_owned()),
    ];
    for (host, tls) in refused {
        let error = lead(host, &tls).await.unwrap_err();
        assert!(!error.passes(), "{host} {tls}: {error}");
    }
}
