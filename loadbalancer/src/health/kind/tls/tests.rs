//! HTTPS checks, of servers on loopback whose certificates are made here.

use std::ops::RangeInclusive;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::health::loopback::{GOOD, IMPATIENT, PATIENT, probe, server, spec};
use crate::health::{BodyMatch, CheckKind};

#[test]
fn only_what_a_certificate_can_name_is_taken() {
    for name in ["www.example", "10.0.0.1", "fd00::1", "localhost"] {
        assert!(TlsCheck::new(Some(name), Verify::System).is_ok(), "{name}");
    }
    for name in ["", "a b", "www.example:443", "[fd00::1]"] {
        assert_eq!(TlsCheck::new(Some(name), Verify::System), Err(SpecError::ServerName(name.into())), "{name}");
    }
}

#[test]
fn authorities_that_cannot_be_read_are_the_gateways_fault() {
    for (path, reason) in [("/no/such/ca.pem", "No such file"), ("/dev/null", "no certificate in PEM form")] {
        let error = client_config(&Verify::File(path.into())).expect_err("there are none");
        assert!(error.is_local(), "{error}");
        let text = error.to_string();
        assert!(text.starts_with("gateway cannot use the CA file") && text.contains(reason), "{text}");
    }
}

/// Certificates made for the test: an authority in a file, and servers' certificates of it.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: NamedFile,
}

/// A file that is removed with the test.
struct NamedFile(PathBuf);

impl NamedFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("loadbalancer-test-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for NamedFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { file: NamedFile::new(name, &certificate.pem()), issuer: Issuer::new(params, key) }
    }

    /// A server that answers within TLS; `years` say when its certificate is valid.
    async fn server(&self, names: &[&str], years: RangeInclusive<i32>, answer: &'static [u8]) -> SocketAddr {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(*years.start(), 1, 1);
        params.not_after = date_time_ymd(*years.end(), 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        server(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                // A client that does not like the certificate goes away.
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let mut request = [0; 1_000];
                    let length = stream.read(&mut request).await.unwrap();
                    assert!(request[..length].starts_with(b"GET / HTTP/1.1\r\n"));
                    stream.write_all(answer).await.unwrap();
                    stream.shutdown().await.unwrap();
                }
            }
        })
        .await
    }
}

fn https(name: Option<&str>, verify: Verify) -> CheckKind {
    let http = HttpCheck::new("GET", "/", None, &[200..=200]).unwrap();
    CheckKind::Https(http.with_body(BodyMatch::text("ok").unwrap()).unwrap(), TlsCheck::new(name, verify).unwrap())
}

#[tokio::test]
async fn certificates_are_verified_unless_told_otherwise() {
    let authority = Authority::new("ca");
    let other = Authority::new("other-ca");
    let ours = || Verify::File(authority.file.0.clone());
    let good = authority.server(&["www.example", "127.0.0.1"], 2000..=2200, GOOD).await;
    let expired = authority.server(&["www.example"], 2000..=2001, GOOD).await;
    let early = authority.server(&["www.example"], 2200..=2201, GOOD).await;
    let broken = authority.server(&["www.example"], 2000..=2200, b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await;
    let wrong = |reason: &str| Err(ProbeError::Certificate(reason.into()));
    for (case, target, name, verify, expected) in [
        ("by name", good, Some("www.example"), ours(), Ok(())),
        ("by address", good, None, ours(), Ok(())),
        ("another name", good, Some("mail.example"), ours(), wrong("is not for mail.example")),
        ("another address and expired, but not verified", expired, None, Verify::Nothing, Ok(())),
        ("another authority", good, None, Verify::File(other.file.0.clone()), wrong("is of an unknown authority")),
        ("expired", expired, Some("www.example"), ours(), wrong("has expired")),
        ("not valid yet", early, Some("www.example"), ours(), wrong("is not valid yet")),
        (
            "a bad answer",
            broken,
            Some("www.example"),
            ours(),
            Err(ProbeError::Status { status: 500, expected: "200".into() }),
        ),
    ] {
        let result = probe(&spec(target, https(name, verify), PATIENT)).await;
        assert_eq!(result.map(|_| ()), expected, "{case}");
    }
    let by_system = probe(&spec(good, https(None, Verify::System), PATIENT)).await;
    // A machine without any certificates says so.
    let told =
        |error: &ProbeError| error.is_local() || *error == ProbeError::Certificate("is of an unknown authority".into());
    assert!(by_system.as_ref().is_err_and(told), "{by_system:?}");
    let unreadable = probe(&spec(good, https(None, Verify::File("/no/such/file".into())), PATIENT)).await;
    assert!(unreadable.as_ref().is_err_and(ProbeError::is_local), "{unreadable:?}");
}

#[tokio::test]
async fn what_is_not_tls_is_told() {
    let plain = server(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut hello = [0; 5_000];
        while stream.read(&mut hello).await.is_ok_and(|length| length > 0) {}
    })
    .await;
    assert_eq!(probe(&spec(plain, https(None, Verify::Nothing), PATIENT)).await, Err(ProbeError::NotTls));
    let silent = server(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let waits = ProbeError::TimedOut { after: IMPATIENT, phase: Phase::Encrypt };
    assert_eq!(probe(&spec(silent, https(None, Verify::Nothing), IMPATIENT)).await, Err(waits));
    // A handshake message of 16 MiB is announced and never ends.
    let endless = server(|mut stream| async move {
        let mut record = vec![0x16, 3, 3, 0x40, 0];
        record.extend([2, 0xff, 0xff, 0xff]);
        record.resize(5 + 0x4000, 0);
        while stream.write_all(&record).await.is_ok() {}
    })
    .await;
    let result = probe(&spec(endless, https(None, Verify::Nothing), PATIENT)).await;
    assert!(matches!(result, Err(ProbeError::NotTls | ProbeError::Tls(_))), "{result:?}");
}
