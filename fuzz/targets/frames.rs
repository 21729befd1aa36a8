//! What must hold for any bytes on a hop or a stop stream. Used by the fuzz targets and by the replay of the corpus.

use edgevpn::net::relay::proto::{
    self, BadMessage, FrameError, MAX_MESSAGE, Request, decode_request, decode_stop_answer,
};
use futures::{executor::block_on, io::Cursor};

/// Bytes that a peer sends on a hop stream.
pub fn hop(bytes: &[u8]) {
    let Some(body) = body(bytes) else { return };
    match decode_request(&body) {
        Ok(Request::Connect { destination }) => {
            let id = destination.to_bytes();
            assert!(body.windows(id.len()).any(|part| part == id));
        }
        Ok(Request::Reserve) => assert!(!body.is_empty(), "an empty message is no RESERVE"),
        Err(BadMessage::Malformed | BadMessage::Unexpected) => {}
    }
}

/// Bytes that a destination answers with on a stop stream.
pub fn stop(bytes: &[u8]) {
    let Some(body) = body(bytes) else { return };
    if decode_stop_answer(&body).is_ok() {
        assert!(!body.is_empty(), "an empty message is no consent");
    }
}

/// The body of the first frame; nothing of what follows may have been taken.
fn body(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = Cursor::new(bytes);
    match block_on(proto::read_frame(&mut stream)) {
        Ok(body) => {
            let prefix = if body.len() < 128 { 1 } else { 2 };
            assert!(body.len() <= MAX_MESSAGE);
            assert_eq!(stream.position(), (prefix + body.len()) as u64);
            Some(body)
        }
        Err(FrameError::Silent) => {
            assert!(bytes.is_empty());
            None
        }
        Err(FrameError::Malformed) => None,
        Err(FrameError::Io(error)) => panic!("a slice does not fail: {error}"),
    }
}
