//! The HTTPS check: who the server must prove to be, and against which authorities; then as in HTTP.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustls_native_certs::{load_certs_from_paths, load_native_certs};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_rustls::{TlsConnector, rustls};

use super::http::{self, HttpCheck};
use crate::health::error::{Phase, ProbeError, SpecError};
use crate::health::limit::TimeLimit;
use crate::health::socket::{Handshake, Sockets};
use crate::health::target::Target;

/// How long certificates of authorities are used before they are read again, so that a new file is noticed.
const REREAD: Duration = Duration::from_secs(60);

/// What was read, and when. Shared by all checks: parsing what a system trusts takes milliseconds.
static CONFIGS: LazyLock<Mutex<Configs>> = LazyLock::new(Mutex::default);
type Configs = HashMap<Verify, (Instant, Arc<ClientConfig>)>;

/// How TLS is spoken in a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsCheck {
    name: Option<ServerName<'static>>,
    verify: Verify,
}

/// What the certificate of a server is verified against.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verify {
    /// The authorities that the gateway's system trusts.
    System,
    /// Those in a PEM file.
    File(PathBuf),
    /// Nothing: any certificate will do.
    Nothing,
}

impl TlsCheck {
    /// `name` is asked for (SNI) and must be in the certificate; `None` stands for the target's address, for which there
    /// is no SNI (RFC 6066, section 3).
    ///
    /// # Errors
    /// What no certificate could have as a name.
    pub fn new(name: Option<&str>, verify: Verify) -> Result<Self, SpecError> {
        let name = match name {
            None => None,
            Some(text) => {
                let name = ServerName::try_from(text).map_err(|_| SpecError::ServerName(text.to_owned()))?;
                Some(name.to_owned())
            }
        };
        Ok(Self { name, verify })
    }

    /// What the handshake needs of the gateway itself, within a time.
    pub(in crate::health) async fn prepare(&self, at_most: Duration) -> Result<TlsConnector, ProbeError> {
        let late = |_| ProbeError::NoRoots {
            what: "certificates of authorities".to_owned(),
            error: format!("reading them takes longer than {at_most:?}"),
        };
        timeout(at_most, self.read()).await.map_err(late)?
    }

    async fn read(&self) -> Result<TlsConnector, ProbeError> {
        let mut configs = CONFIGS.lock().await;
        let config = match configs.get(&self.verify) {
            Some((read, config)) if read.elapsed() < REREAD => config.clone(),
            _ => {
                let verify = self.verify.clone();
                let read = tokio::task::spawn_blocking(move || client_config(&verify)).await;
                let config = Arc::new(read.map_err(|error| ProbeError::Other(error.to_string()))??);
                configs.insert(self.verify.clone(), (Instant::now(), config.clone()));
                config
            }
        };
        Ok(TlsConnector::from(config))
    }

    async fn handshake(
        &self,
        connector: TlsConnector,
        stream: TcpStream,
        target: SocketAddr,
    ) -> Result<TlsStream<TcpStream>, ProbeError> {
        let name = self.name.clone().unwrap_or_else(|| ServerName::from(target.ip()));
        connector.connect(name.clone(), stream).await.map_err(|error| from_tls(&error, &name))
    }
}

/// Connects, has the server prove who it is, sends the request and judges the answer.
pub(in crate::health) async fn ask(
    target: &Target,
    check: &HttpCheck,
    (tls, connector): (&TlsCheck, TlsConnector),
    sockets: &Sockets,
    limit: &TimeLimit,
) -> Result<(), ProbeError> {
    let stream = sockets.connect(target, Handshake::HeldBack, limit).await?;
    let stream = limit.within(Phase::Encrypt, tls.handshake(connector, stream, target.address)).await?;
    http::ask_over(stream, check, target.address, http::TLS_PORT, limit).await
}

fn client_config(verify: &Verify) -> Result<ClientConfig, ProbeError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| ProbeError::Tls(error.to_string()))?;
    let mut config = match verify {
        Verify::Nothing => {
            let anyone = Arc::new(Anyone(provider));
            builder.dangerous().with_custom_certificate_verifier(anyone).with_no_client_auth()
        }
        Verify::System | Verify::File(_) => builder.with_root_certificates(roots(verify)?).with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session shows no certificate, and so would hide that it has expired.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn roots(verify: &Verify) -> Result<RootCertStore, ProbeError> {
    let (what, loaded) = match verify {
        Verify::File(path) => (format!("the CA file {}", path.display()), load_certs_from_paths(Some(path), None)),
        _ => ("the system's certificates".to_owned(), load_native_certs()),
    };
    let mut roots = RootCertStore::empty();
    // One that cannot be parsed, as some old ones, leaves the others usable.
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added > 0 {
        return Ok(roots);
    }
    let error = match (loaded.errors.first(), verify) {
        (Some(error), _) => error.to_string(),
        (None, Verify::File(_)) => "it has no certificate in PEM form".to_owned(),
        (None, _) => "there are none: install ca-certificates, or set `ca`".to_owned(),
    };
    Err(ProbeError::NoRoots { what, error })
}

fn from_tls(error: &io::Error, name: &ServerName<'_>) -> ProbeError {
    let Some(tls) = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) else {
        return ProbeError::from_io(error);
    };
    match tls {
        Error::InvalidMessage(_) => ProbeError::NotTls,
        Error::InvalidCertificate(reason) => ProbeError::Certificate(match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired".to_owned(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "is not valid yet".to_owned()
            }
            CertificateError::UnknownIssuer => "is of an unknown authority".to_owned(),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("is not for {}", text_of(name))
            }
            other => format!("is not valid: {other}"),
        }),
        other => ProbeError::Tls(other.to_string()),
    }
}

fn text_of(name: &ServerName<'_>) -> String {
    match name {
        ServerName::IpAddress(ip) => IpAddr::from(*ip).to_string(),
        _ => name.to_str().into_owned(),
    }
}

/// Takes any certificate; that the server has its key is still verified.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
