//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// A one's complement sum that is not folded yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even offset.
    pub fn over(self, bytes: &[u8]) -> Self {
        // Sixteen-bit words in any order and any width give the same folded sum; 32 at a time leave room for 4 GiB.
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum = self.0;
        for word in words {
            sum = sum.wrapping_add(u64::from(u32::from_be_bytes(*word)));
        }
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        Self(sum.wrapping_add(u64::from(u32::from_be_bytes(last))))
    }

    pub fn add_word(self, word: u16) -> Self {
        Self(self.0.wrapping_add(u64::from(word)))
    }

    /// What TCP and UDP sum beside their own bytes (RFC 9293 §3.1, RFC 8200 §8.1). `length` is that of header and payload.
    pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> Self {
        let addresses = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::default()
                .over(&source.octets())
                .over(&destination.octets()),
            (source, destination) => {
                [source, destination]
                    .iter()
                    .fold(Self::default(), |sum, address| match address {
                        IpAddr::V4(address) => sum.over(&address.to_ipv6_mapped().octets()),
                        IpAddr::V6(address) => sum.over(&address.octets()),
                    })
            }
        };
        addresses
            .over(&length.to_be_bytes())
            .add_word(u16::from(protocol))
    }

    /// Folded to sixteen bits, not complemented: what a packet carries whose sum is left to be completed.
    pub fn partial(self) -> u16 {
        let mut sum = self.0;
        while let high @ 1.. = sum >> 16 {
            sum = (sum & 0xffff) + high;
        }
        sum as u16
    }

    /// What the packet carries. Summing over it again gives zero.
    pub fn complete(self) -> u16 {
        !self.partial()
    }
}

/// Writes a big-endian word, a sum or a length, into a packet. `None`: it is not inside.
pub fn put(packet: &mut [u8], at: usize, word: u16) -> Option<()> {
    *packet.get_mut(at..)?.first_chunk_mut()? = word.to_be_bytes();
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().over(&bytes).partial(), 0xddf2);
    }

    proptest::proptest! {
        #[test]
        fn it_equals_the_sum_of_words(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut naive = 0_u32;
            for pair in bytes.chunks(2) {
                naive += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
                naive = (naive & 0xffff) + (naive >> 16);
            }
            proptest::prop_assert_eq!(u32::from(Sum::default().over(&bytes).partial()), naive);
        }
    }
}
