//! TLS from outside: who is believed, who is turned away, and what becomes of those who speak something else.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use auth_min::{BearerToken, TokenDigest};
use deadline_propagation::Deadline;
use rbee_api::error::{ErrorBody, ErrorCode};
use rbee_http::{Access, CallError, HopClient, Principal, RouteTable, Server, bind};
use rbee_tls::{
    Authority, OwnCertificate, Peer, PeerCertificate, Served, TlsMode, TlsSettings, Trust,
    server_config,
};
use secrets_management::Secret;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{TOKEN, bearer, metrics, raw};

/// Far longer than a handshake may take, and than headers may.
const CUT_WITHIN: Duration = Duration::from_secs(20);

fn authority() -> (TempDir, Arc<Authority>) {
    let directory = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::load_or_generate(directory.path()).unwrap());
    (directory, authority)
}

fn attic() -> Peer {
    Peer::Hive("attic".parse().unwrap())
}

/// Serves `/peer` to who shows the certificate of the attic's hive, and `/client` to everybody, both with the token.
async fn serve(served: Served) -> (SocketAddr, CancellationToken) {
    let known = TokenDigest::of(TOKEN);
    let authenticator =
        Arc::new(move |shown: &BearerToken<'_>, certificate: Option<&PeerCertificate>| {
            let principal = match certificate {
                Some(certificate) if certificate.peer == attic() => Principal::Peer,
                Some(_) | None => Principal::Client,
            };
            shown.digest().matches(&known).then_some(principal)
        });
    let routes = RouteTable::new().get("/peer", Access::Peer, || async { axum::Json("peer") }).get(
        "/client",
        Access::Inference,
        || async { axum::Json("client") },
    );
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let router = routes.build((), authenticator, metrics());
    let server = Server::new(listener, router, Duration::from_secs(5)).over(Some(&served));
    tokio::spawn(server.run(stop.clone()));
    (address, stop)
}

/// Serves with a certificate of `authority` for `names` and for the queen.
async fn serve_as_queen(
    authority: &Arc<Authority>,
    names: &[&str],
) -> (SocketAddr, CancellationToken) {
    let names = names.iter().map(ToString::to_string).collect();
    let own = OwnCertificate::signed_by(Arc::clone(authority), Some(Peer::Queen), names).unwrap();
    let config = server_config(&own, Some(&Trust::of_authority(authority))).unwrap();
    serve(Served { own, config, known_by: None, authority: None }).await
}

async fn get(address: SocketAddr, path: &str, trust: &Trust) -> Result<String, CallError> {
    let token = Arc::new(Secret::from_bytes(TOKEN.as_bytes(), "test").unwrap());
    let client = HopClient::trusting(&format!("https://{address}"), token, trust).unwrap();
    client.get(path, Deadline::after(Duration::from_secs(10))).await
}

fn is_turned_away<T: std::fmt::Debug>(answer: Result<T, CallError>) -> bool {
    matches!(answer, Err(CallError::Unreachable(_)))
}

#[tokio::test]
async fn a_caller_believes_the_ca_it_was_given_and_no_other() {
    let (_directory, ours) = authority();
    let (_other, theirs) = authority();
    let (address, _stop) = serve_as_queen(&ours, &["127.0.0.1"]).await;
    let trust = Trust::of_authority(&ours);
    assert_eq!(get(address, "/client", &trust).await.unwrap(), "client");
    let by_fingerprint = Trust::of_fingerprint(ours.fingerprint());
    assert_eq!(get(address, "/client", &by_fingerprint).await.unwrap(), "client");
    for stranger in [
        Trust::nobody(),
        Trust::of_authority(&theirs),
        Trust::of_fingerprint(theirs.fingerprint()),
        Trust::of_authority(&ours).expecting(attic()),
    ] {
        assert!(is_turned_away(get(address, "/client", &stranger).await), "{stranger:?}");
    }
}

#[tokio::test]
async fn a_certificate_is_good_for_its_names_and_for_the_program_it_names() {
    let (_directory, ours) = authority();
    let (address, _stop) = serve_as_queen(&ours, &["elsewhere.example"]).await;
    let trust = Trust::of_authority(&ours);
    assert!(is_turned_away(get(address, "/client", &trust).await), "it is not for 127.0.0.1");
    let queen = trust.expecting(Peer::Queen);
    assert_eq!(get(address, "/client", &queen).await.unwrap(), "client", "it is the queen's");
}

#[tokio::test]
async fn a_caller_is_who_its_certificate_says_if_the_ca_is_ours() {
    let (_directory, ours) = authority();
    let (_other, theirs) = authority();
    let (address, _stop) = serve_as_queen(&ours, &["127.0.0.1"]).await;
    let shown_by = |authority: &Arc<Authority>, peer: Peer| {
        let own = OwnCertificate::signed_by(Arc::clone(authority), Some(peer), Vec::new()).unwrap();
        Trust::of_authority(&ours).showing(own)
    };
    let own = shown_by(&ours, attic());
    assert_eq!(get(address, "/peer", &own).await.unwrap(), "peer");
    for other in
        [Trust::of_authority(&ours), shown_by(&ours, Peer::Hive("cellar".parse().unwrap()))]
    {
        let refused = get(address, "/peer", &other).await.unwrap_err();
        assert!(matches!(&refused, CallError::Refused(d) if d.code == ErrorCode::Forbidden));
    }
    let forged = get(address, "/client", &shown_by(&theirs, attic())).await;
    assert!(forged.is_err(), "a certificate of another CA is not as good as none");
}

#[tokio::test]
async fn files_are_known_by_themselves_and_read_again() {
    let (directory, ours) = authority();
    let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    write_files(&ours, &cert, &key);
    let settings = TlsSettings {
        mode: TlsMode::Files,
        cert_file: Some(cert.clone()),
        key_file: Some(key.clone()),
        ..TlsSettings::default()
    };
    let at = "127.0.0.1:1".parse().unwrap();
    let served = settings.open(Path::new("/nowhere"), at, &Peer::Queen).unwrap().unwrap();
    let own = served.own.clone();
    let (address, _stop) = serve(served).await;
    let before = Trust::in_files([&cert]).unwrap();
    assert_eq!(get(address, "/client", &before).await.unwrap(), "client");
    let other = before.clone().expecting(attic());
    assert!(is_turned_away(get(address, "/client", &other).await), "it is the cellar's");

    write_files(&ours, &cert, &key);
    own.renew().unwrap();
    assert!(is_turned_away(get(address, "/client", &before).await), "the old one is not shown");
    let after = Trust::in_files([&cert]).unwrap();
    assert_eq!(get(address, "/client", &after).await.unwrap(), "client");

    std::fs::write(&cert, "nothing").unwrap();
    own.renew().unwrap_err();
    assert_eq!(get(address, "/client", &after).await.unwrap(), "client", "the old one stays");
}

/// Writes a certificate that is for no name that anybody calls.
fn write_files(authority: &Authority, cert: &Path, key: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let pair = rcgen::KeyPair::generate().unwrap();
    let point = rbee_tls::HiveKey::from_bytes(pair.public_key_raw()).unwrap();
    let (pem, _) = authority.certify(&"cellar".parse().unwrap(), &point).unwrap();
    std::fs::write(cert, pem).unwrap();
    std::fs::write(key, pair.serialize_pem()).unwrap();
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn who_speaks_plain_http_is_told_and_reaches_no_route() {
    let (_directory, ours) = authority();
    let (address, _stop) = serve_as_queen(&ours, &["127.0.0.1"]).await;
    let head = format!("GET /client HTTP/1.1\r\nHost: localhost\r\n{}\r\n", bearer(TOKEN));
    let (status, _, body) = raw(address, &head).await;
    let body: ErrorBody = serde_json::from_str(&body).unwrap();
    assert_eq!((status, body.error.code), (400, ErrorCode::TlsRequired));
    assert!(body.error.message.contains("https://"), "{}", body.error.message);
}

/// The first message of a client that knows TLS up to 1.`minor`, and a cipher that the server has, too.
fn hello(minor: u8) -> Vec<u8> {
    let signatures = [0, 13, 0, 4, 0, 2, 4, 3];
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let mut hello = vec![3, minor + 1];
    hello.extend([7; 32]);
    // No session, one cipher (ECDHE, ECDSA, AES-128-GCM), no compression, two extensions.
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 16]);
    hello.extend(signatures);
    hello.extend(groups);
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

#[tokio::test]
async fn tls_1_1_is_refused() {
    let (_directory, ours) = authority();
    let (address, _stop) = serve_as_queen(&ours, &["127.0.0.1"]).await;
    let answer = async |minor| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&hello(minor)).await.unwrap();
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    };
    // An alert, fatal: protocol_version.
    for minor in [0, 1] {
        assert_eq!(answer(minor).await, [21, 3, 3, 0, 2, 2, 70], "1.{minor}");
    }
    assert_eq!(answer(2).await.first(), Some(&22), "the same message for 1.2 is answered");
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_cut_off() {
    let (_directory, ours) = authority();
    let (address, _stop) = serve_as_queen(&ours, &["127.0.0.1"]).await;
    let half = hello(2);
    for sent in [&[][..], &half[..1], &half[..20]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(CUT_WITHIN, stream.read_to_end(&mut answer)).await;
        read.expect("it is cut off").ok();
    }
}
