//! Whether a TCP connection can be opened.

use super::{door::Door, why::Why};

pub(super) async fn check(door: &Door) -> Result<(), Why> {
    door.connect().await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_open_or_closed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(check(&Door::own(address)).await, Ok(()));
        drop(listener);
        let why = check(&Door::own(address)).await.unwrap_err().to_string();
        assert!(why.contains("Connection refused"), "{why}");
    }
}
