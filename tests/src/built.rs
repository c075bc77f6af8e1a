//! What is set in the image that our own `xl image build` makes for the stories.

/// Its name.
pub const NAME: &str = "centos";
/// Its address and its gateway, as `--network` takes them.
pub const ADDRESS: &str = "10.0.2.21/24,10.0.2.2";
/// Its root; mounted for reading only by whoever starts it so, and for writing by itself.
pub const FSTAB: &str = "/dev/xvda1 / ext4 defaults,noatime 0 1";
/// Who may log in over the network; nobody has the other half.
pub const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJEWxkHlW0dsnUEVuVA3fVyqTOzQRUOxLk1pa2DYZ4H9 story\n";
/// Root's password, which has to be changed at the first login,
pub const PASSWORD: &str = "first-Login1";
/// and what `openssl passwd -6` makes of it.
pub const PASSWORD_HASH: &str =
    "$6$ferroxen$2B9VMOq4W/M/kOHzmNAEsDq49KU6tFYT5gmV7k81IUUVWmliVaqOaE5PR2cwF2YLTe36tHxaHOsi5hjxv.u7G1";
