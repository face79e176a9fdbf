//! The way to the controller: one connection, a time limit on every call.

use std::{
    env,
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

use throughline_identity::{Identity, Security};
use throughline_wire::v1::fabric_client::FabricClient;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::{exit::Exit, failure::Failure, output::Format};

/// Where the controller listens unless told otherwise.
const DEFAULT_CONTROLLER: &str = "127.0.0.1:7700";

/// How often an idle connection is probed, so that a watch notices a controller that vanished without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Entries asked for at a time; the protocol allows 1000.
pub(crate) const PAGE_SIZE: u32 = 250;

/// How to reach the controller and how to show what it says.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// The controller's address.
    pub(crate) controller: Uri,
    /// Where the operator's credentials are; `None`: nobody said, and there is no home directory.
    pub(crate) tls: Option<PathBuf>,
    /// Without credentials, in plaintext.
    pub(crate) insecure: bool,
    /// For each call.
    pub(crate) timeout: Duration,
    /// Form of the output.
    pub(crate) output: Format,
}

impl Session {
    /// The controller's address unless one is given.
    pub(crate) fn default_controller(insecure: bool) -> Uri {
        let scheme = if insecure { "http" } else { "https" };
        Uri::builder().scheme(scheme).authority(DEFAULT_CONTROLLER).path_and_query("/").build().unwrap_or_default()
    }

    /// Connects.
    ///
    /// # Errors
    /// Nobody answers at that address, or it is not the controller, or it does not accept the operator's certificate.
    pub(crate) async fn connect(&self) -> Result<FabricClient<Channel>, Failure> {
        let what = format!("reach the controller at {}", self.address());
        let security = self.security(&what)?;
        let endpoint = Endpoint::from(self.controller.clone())
            .connect_timeout(self.timeout)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(self.timeout);
        let channel = security.dial(endpoint, &Identity::Controller).await;
        channel.map(FabricClient::new).map_err(|error| Failure::not_dialled(what, &error))
    }

    fn security(&self, what: &str) -> Result<Security, Failure> {
        let missing = |message: String| Failure::new(Exit::Other, "NO_CREDENTIALS", what, message);
        if self.insecure {
            self.notice("--insecure: PLAINTEXT, nothing is proved by either end");
            return Ok(Security::Insecure);
        }
        let Some(directory) = &self.tls else {
            let message = "there is no home directory to look for credentials in; say with --tls where they are";
            return Err(missing(message.to_owned()));
        };
        Security::load(directory, false).map_err(|error| missing(error.to_string()))
    }

    /// Says something on stderr that is only worth knowing. If stderr is gone nobody reads it.
    fn notice(&self, text: &str) {
        let _ = match self.output {
            Format::Table => writeln!(io::stderr(), "{text}"),
            Format::Json => writeln!(io::stderr(), "{}", serde_json::json!({ "notice": text })),
        };
    }

    /// Waits for the answer to a call. `what` is what the call should do, for the error.
    ///
    /// # Errors
    /// The controller refused, the connection broke, or time is up.
    pub(crate) async fn answer<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::answered(what, &status)),
            Err(_) => {
                let message = format!("no answer from {} within {} s", self.address(), self.timeout.as_secs_f64());
                Err(Failure::new(Exit::Unreachable, "TIMEOUT", what, message)
                    .next("it may have been done all the same: look before you repeat it, or give --timeout more"))
            }
        }
    }

    /// The controller's address as the operator would write it.
    fn address(&self) -> String {
        self.controller.to_string().trim_end_matches('/').to_owned()
    }

    /// A command line for the operator to type, aimed at the same controller.
    pub(crate) fn hint(&self, command: &str) -> String {
        let mut line = format!("throughline {command}");
        let here = self.address();
        let default =
            env::var("THROUGHLINE_CONTROLLER").unwrap_or_else(|_| Self::default_controller(self.insecure).to_string());
        if default.trim_end_matches('/') != here {
            line += &format!(" --controller {here}");
        }
        if self.insecure {
            line += " --insecure";
        } else if let Some(tls) = &self.tls
            && self.tls != env::var_os("THROUGHLINE_TLS").map(PathBuf::from).or_else(default_tls)
        {
            line += &format!(" --tls {}", tls.display());
        }
        line
    }
}

/// Where an operator's credentials are unless said otherwise.
pub(crate) fn default_tls() -> Option<PathBuf> {
    let directory = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = directory("XDG_CONFIG_HOME").or_else(|| directory("HOME").map(|home| home.join(".config")));
    config.map(|config| config.join("throughline"))
}

/// Reads a list to its end. `page` asks for the page at a token and gives its entries and the next token.
///
/// # Errors
/// Those of `page`, or a controller whose pages lead in a circle.
pub(crate) async fn all_pages<T>(
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), Failure>,
) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let (entries, next) = page(token.clone()).await?;
        all.extend(entries);
        if next.is_empty() {
            return Ok(all);
        }
        if next == token {
            return Err(Failure::new(Exit::Other, "BAD_ANSWER", "read the list", "the controller repeats a page"));
        }
        token = next;
    }
}

/// The address of a controller: `https://HOST:PORT`.
pub(crate) fn controller(text: &str) -> Result<Uri, String> {
    const EXPECTED: &str = "expected https://HOST:PORT";
    let uri: Uri = text.parse().map_err(|error| format!("{error}; {EXPECTED}"))?;
    match uri.scheme_str() {
        Some("https" | "http") if uri.path() == "/" && uri.query().is_none() => Ok(uri),
        Some("https" | "http") => Err(format!("has a path; {EXPECTED}")),
        Some(scheme) => Err(format!("cannot speak {scheme}; {EXPECTED}")),
        None => Err(EXPECTED.to_owned()),
    }
}

/// Does `work` unless Ctrl-C comes first.
///
/// # Errors
/// Those of `work`; or what `interrupted` makes of Ctrl-C.
pub(crate) async fn interruptible<T>(
    work: impl Future<Output = Result<T, Failure>>,
    interrupted: impl FnOnce() -> Failure,
) -> Result<T, Failure> {
    tokio::select! {
        done = work => done,
        Ok(()) = tokio::signal::ctrl_c() => Err(interrupted()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for good in ["https://127.0.0.1:7700", "http://[::1]:7700", "https://controller.example:7700/"] {
            controller(good).expect(good);
        }
        for insecure in [true, false] {
            let default = Session::default_controller(insecure);
            assert_eq!(controller(&default.to_string()), Ok(default));
        }
        for bad in ["", "127.0.0.1:7700", "ftp://a:1", "https://", "https://a:1/v1", "https://a:1?x", "https://a b"] {
            controller(bad).expect_err(bad);
        }
    }

    #[tokio::test]
    async fn a_list_is_read_to_its_end() {
        let pages = [(vec![1, 2], "a"), (vec![], "b"), (vec![3], "")];
        let mut left = pages.into_iter();
        let all = all_pages(async |token| {
            let (entries, next) = left.next().expect("no page after the last");
            assert_eq!(
                token,
                if entries == [1, 2] {
                    ""
                } else if entries.is_empty() {
                    "a"
                } else {
                    "b"
                }
            );
            Ok((entries, next.to_owned()))
        });
        assert_eq!(all.await.unwrap(), [1, 2, 3]);
    }

    #[tokio::test]
    async fn pages_in_a_circle_end() {
        let all = all_pages(async |_| Ok((vec![0], "again".to_owned())));
        assert!(format!("{:?}", all.await.unwrap_err()).contains("BAD_ANSWER"));
    }
}
