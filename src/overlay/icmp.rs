//! What a router answers to the sender of a packet it cannot carry: unreachable, or too big.

use std::net::IpAddr;

use super::{
    checksum::Sum,
    packet::{Header, ICMP, ICMPV6},
};

/// Why a packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No peer has the destination, or none is connected.
    Unreachable,
    /// The path takes so many bytes.
    TooBig { mtu: u16 },
}

/// Of the packet that is answered: RFC 792 wants its header and 8 bytes, RFC 1812 more; 548 keep an IPv4 answer within
/// 576 bytes, and 1232 an IPv6 one within 1280 (RFC 4443 §2.4).
const QUOTED_V4: usize = 548;
const QUOTED_V6: usize = 1_232;

/// The answer to `packet`, sent as if by `from`. `None` where RFC 1122 §3.2.2 and RFC 4443 §2.4 forbid one: to an ICMP error, to a
/// fragment that is not the first, to a sender that is no single host.
pub fn answer(packet: &[u8], header: &Header, problem: Problem, from: IpAddr) -> Option<Vec<u8>> {
    if is_error(packet, header) || header.fragment {
        return None;
    }
    match (header.source, from) {
        (IpAddr::V4(to), IpAddr::V4(from)) => {
            let (kind, code, word) = match problem {
                Problem::Unreachable => (3, 1, 0),
                Problem::TooBig { mtu } => (3, 4, u32::from(mtu)),
            };
            let quoted = packet.get(..QUOTED_V4).unwrap_or(packet);
            let mut answer = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, ICMP, 0, 0];
            answer.extend(from.octets());
            answer.extend(to.octets());
            let message = message(kind, code, word, quoted);
            let total = u16::try_from(answer.len() + message.len()).ok()?;
            answer.get_mut(2..4)?.copy_from_slice(&total.to_be_bytes());
            let sum = Sum::default().over(&answer).complete();
            answer.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
            answer.extend(summed(message, Sum::default())?);
            Some(answer)
        }
        (IpAddr::V6(to), IpAddr::V6(from)) => {
            let (kind, code, word) = match problem {
                Problem::Unreachable => (1, 3, 0),
                Problem::TooBig { mtu } => (2, 0, u32::from(mtu)),
            };
            let quoted = packet.get(..QUOTED_V6).unwrap_or(packet);
            let message = message(kind, code, word, quoted);
            let length = u16::try_from(message.len()).ok()?;
            let mut answer = vec![0x60, 0, 0, 0];
            answer.extend(length.to_be_bytes());
            answer.extend([ICMPV6, 64]);
            answer.extend(from.octets());
            answer.extend(to.octets());
            let pseudo = Sum::pseudo_header(from.into(), to.into(), ICMPV6, u32::from(length));
            answer.extend(summed(message, pseudo)?);
            Some(answer)
        }
        _ => None,
    }
}

fn message(kind: u8, code: u8, word: u32, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(word.to_be_bytes());
    message.extend(quoted);
    message
}

fn summed(mut message: Vec<u8>, sum: Sum) -> Option<Vec<u8>> {
    let sum = sum.over(&message).complete();
    message.get_mut(2..4)?.copy_from_slice(&sum.to_be_bytes());
    Some(message)
}

/// An error message, or ICMP too short to tell.
fn is_error(packet: &[u8], header: &Header) -> bool {
    let kind = packet.get(header.length).copied();
    match header.protocol {
        // Echo, timestamp and information are questions and answers; the rest are errors.
        ICMP => !kind.is_some_and(|kind| matches!(kind, 0 | 8 | 13..=18)),
        ICMPV6 => kind.is_none_or(|kind| kind < 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::segment::tests::kernel_packet;

    #[test]
    fn a_sender_is_told_what_was_wrong_with_its_packet() {
        for (v4, from) in [(true, "10.1.0.9"), (false, "fd00::9")] {
            let from: IpAddr = from.parse().expect("an address");
            let packet = kernel_packet(v4, false, 0, &[1; 1_500]);
            let header = Header::parse(&packet).expect("a packet");
            for problem in [Problem::Unreachable, Problem::TooBig { mtu: 1_280 }] {
                let reply = answer(&packet, &header, problem, from).expect("an answer");
                let told = Header::parse(&reply).expect("a packet");
                assert_eq!((told.source, told.destination), (from, header.source));
                assert!(reply.len() <= if v4 { 576 } else { 1_280 });
                let body = &reply[told.length..];
                let pseudo = if v4 {
                    Sum::default()
                } else {
                    Sum::pseudo_header(
                        told.source,
                        told.destination,
                        ICMPV6,
                        u32::try_from(body.len()).unwrap(),
                    )
                };
                assert_eq!(pseudo.over(body).complete(), 0, "the sum holds");
                assert!(
                    body[8..].iter().eq(&packet[..body.len() - 8]),
                    "it quotes the packet"
                );
                assert_eq!(
                    answer(&reply, &told, Problem::Unreachable, from),
                    None,
                    "no error about an error"
                );
            }
        }
    }
}
