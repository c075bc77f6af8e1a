export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=${TERM:-vt100}
export PS1='\u@\h:\w# '
cd /root
