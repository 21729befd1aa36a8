//! The token of a network: the base64 of a small YAML document. Read generously, written exactly as EdgeVPN writes it.

use super::{Rotation, Token, yaml};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fmt;

impl Token {
    /// Reads a token (base64, also URL-safe, unpadded or broken over lines) or the YAML inside it. Refuses what makes the
    /// reference implementation crash or fall silent: an interval of 0, a length above 44, a message size of 0; and an
    /// empty sealing secret, with which everybody could read and write.
    pub fn parse(text: &[u8]) -> Result<Token, TokenError> {
        if text.len() > MAX_TEXT {
            return Err(TokenError::TooLong { length: text.len() });
        }
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        if text.trim_ascii().is_empty() {
            return Err(TokenError::Empty);
        }
        // A mapping has a colon, and no alphabet of base64 does.
        if text.contains(&b':') {
            return read_yaml(text);
        }
        let plain: Vec<u8> = text
            .iter()
            .filter(|byte| !byte.is_ascii_whitespace())
            .map(|byte| match byte {
                b'-' => b'+',
                b'_' => b'/',
                other => *other,
            })
            .collect();
        let yaml = LENIENT.decode(plain).map_err(|_| TokenError::NotAToken)?;
        read_yaml(&yaml)
    }

    /// A new network. Its five secrets are 43 letters and digits (256 bits each) drawn with `fill`, which fills a buffer with
    /// random bytes; both rotations take `interval` seconds, the message size is 20 MiB, as EdgeVPN generates them.
    pub fn generate(interval: u64, mut fill: impl FnMut(&mut [u8])) -> Token {
        let mut secret = || secret(&mut fill);
        Token {
            dht: Rotation {
                interval,
                key: secret(),
                length: SECRET_LENGTH,
            },
            crypto: Rotation {
                interval,
                key: secret(),
                length: SECRET_LENGTH,
            },
            room: secret(),
            rendezvous: secret(),
            mdns: secret(),
            max_message_size: DEFAULT_MESSAGE_SIZE,
        }
    }

    /// The token as it is handed around: one line, padded, without a line break at its end.
    pub fn to_base64(&self) -> String {
        general_purpose::STANDARD.encode(self.to_yaml())
    }

    /// The document inside the token, also a network file by itself.
    pub fn to_yaml(&self) -> String {
        let rotation = |rotation: &Rotation| {
            format!(
                "    interval: {}\n    key: {}\n    length: {}\n",
                rotation.interval,
                yaml::scalar(&rotation.key),
                rotation.length
            )
        };
        format!(
            "otp:\n  dht:\n{}  crypto:\n{}room: {}\nrendezvous: {}\nmdns: {}\nmax_message_size: {}\n",
            rotation(&self.dht),
            rotation(&self.crypto),
            yaml::scalar(&self.room),
            yaml::scalar(&self.rendezvous),
            yaml::scalar(&self.mdns),
            self.max_message_size,
        )
    }

    /// Names this network where a token must not appear. Any change of the token changes it.
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = Sha256::new()
            .chain_update(FINGERPRINT_DOMAIN)
            .chain_update(self.to_yaml())
            .finalize();
        let mut short = [0; 4];
        for (to, from) in short.iter_mut().zip(digest) {
            *to = from;
        }
        Fingerprint(short)
    }
}

/// Secrets stay out of logs: only the fingerprint is shown.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.fingerprint())
    }
}

impl fmt::Debug for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotation")
            .field("interval", &self.interval)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// A short name of a token: 32 bits of a hash of it, shown as 8 hexadecimal characters. Says nothing about the secrets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 4]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a text is no token. Never quotes the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is empty; `edgevpn token new` makes one")]
    Empty,
    #[error("not a token: {length} bytes are too many (tokens have about 500)")]
    TooLong { length: usize },
    #[error("not a token: neither base64 nor YAML; was it cut or mistyped?")]
    NotAToken,
    #[error(
        "not a token: it holds no YAML mapping of a network (line {line}, column {column}); was it cut or mistyped?"
    )]
    NotYaml { line: u64, column: u64 },
    #[error("the token has {key} {value}; it must be at least 1 (seconds)")]
    Interval { key: &'static str, value: i64 },
    #[error("the token has {key} {value}; at most 44 characters can be kept")]
    Length { key: &'static str, value: i64 },
    #[error(
        "the token has max_message_size {value}; it must be at least 1 (bytes), or was the token cut?"
    )]
    MessageSize { value: i64 },
    #[error(
        "the token has no otp.crypto.key; without that secret everybody could read the network's messages"
    )]
    NoSecret,
}

/// Bytes of text that are looked at; a token with every secret at its longest has under a thousand.
const MAX_TEXT: usize = 64 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// All characters of the base64 of a SHA-256; more cannot be kept.
const MAX_LENGTH: i64 = 44;

/// What EdgeVPN generates: characters of a secret, and characters kept of a derived text.
const SECRET_LENGTH: usize = 43;

/// 20 MiB, as EdgeVPN generates it.
const DEFAULT_MESSAGE_SIZE: u64 = 20 << 20;

const FINGERPRINT_DOMAIN: &[u8] = b"edgevpn token fingerprint v1\0";

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

const LETTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

fn secret(fill: &mut impl FnMut(&mut [u8])) -> String {
    let mut text = String::with_capacity(SECRET_LENGTH);
    let mut random = [0; 64];
    while text.len() < SECRET_LENGTH {
        fill(&mut random);
        for byte in random {
            // 248 = 4 * 62: below it every letter is equally likely.
            let letter = LETTERS.get(usize::from(byte % 62)).copied();
            if let (Some(letter), true, true) = (letter, byte < 248, text.len() < SECRET_LENGTH) {
                text.push(char::from(letter));
            }
        }
    }
    text
}

/// The document as it is written. Unknown members are ignored, missing ones are 0 or empty.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    otp: Option<Otp>,
    room: Option<String>,
    rendezvous: Option<String>,
    mdns: Option<String>,
    max_message_size: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Otp {
    dht: Option<Turn>,
    crypto: Option<Turn>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Turn {
    interval: Option<i64>,
    key: Option<String>,
    length: Option<i64>,
}

fn read_yaml(text: &[u8]) -> Result<Token, TokenError> {
    let text = std::str::from_utf8(text).map_err(|_| TokenError::NotAToken)?;
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    let document: Document =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            // The reason would quote the text.
            let place = error.location();
            TokenError::NotYaml {
                line: place.map_or(1, |place| place.line()),
                column: place.map_or(1, |place| place.column()),
            }
        })?;
    let otp = document.otp.unwrap_or_default();
    let mut dht = otp.dht.unwrap_or_default();
    // Characters kept of the rendezvous: the reference replaces 0 by 12 there, and anything below by 6.
    dht.length = Some(match dht.length.unwrap_or_default() {
        ..0 => 6,
        length => length,
    });
    let size = document.max_message_size.unwrap_or_default();
    let token = Token {
        dht: read_turn(dht, "otp.dht.interval", "otp.dht.length")?,
        crypto: read_turn(
            otp.crypto.unwrap_or_default(),
            "otp.crypto.interval",
            "otp.crypto.length",
        )?,
        room: document.room.unwrap_or_default(),
        rendezvous: document.rendezvous.unwrap_or_default(),
        mdns: document.mdns.unwrap_or_default(),
        max_message_size: u64::try_from(size)
            .ok()
            .filter(|size| *size > 0)
            .ok_or(TokenError::MessageSize { value: size })?,
    };
    if token.crypto.key.is_empty() {
        return Err(TokenError::NoSecret);
    }
    Ok(token)
}

fn read_turn(
    turn: Turn,
    interval_key: &'static str,
    length_key: &'static str,
) -> Result<Rotation, TokenError> {
    let interval = turn.interval.unwrap_or_default();
    let length = turn.length.unwrap_or_default();
    if length > MAX_LENGTH {
        return Err(TokenError::Length {
            key: length_key,
            value: length,
        });
    }
    Ok(Rotation {
        interval: u64::try_from(interval)
            .ok()
            .filter(|interval| *interval > 0)
            .ok_or(TokenError::Interval {
                key: interval_key,
                value: interval,
            })?,
        key: turn.key.unwrap_or_default(),
        length: usize::try_from(length).unwrap_or_default(),
    })
}
