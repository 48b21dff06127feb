# A child that is talked to through pipes, select, alarm handlers; a digest that depends on every step.
# Usage: work.pl GO. It does not end before GO is there.
use strict; use warnings; use Digest::SHA qw(sha256_hex);
$| = 1;
pipe(my $r1, my $w1) or die; pipe(my $r2, my $w2) or die;
my $child = fork() // die;
if (!$child) {
    close $w1; close $r2; $w2->autoflush(1);
    while (my $line = <$r1>) { print $w2 sha256_hex($line), "\n" or die; }
    exit 7;
}
close $r1; close $w2; $w1->autoflush(1);
my $ticks = 0;
$SIG{ALRM} = sub { $ticks++; };
my %seen; my $h = "start";
for my $i (1 .. 50000) {
    while ($i == 40000 && !-e $ARGV[0]) { select(undef, undef, undef, 0.002); }
    print $w1 "$h $i\n" or die "write: $!";
    my $answer = <$r2>; defined $answer or die "read: $!";
    chomp $answer; $h = $answer; $seen{substr($h, 0, 3)}++;
    print "READY\n" if $i == 8000;
    select(undef, undef, undef, 0.001) if $i % 100 == 0;
}
close $w1; waitpid($child, 0); die "child $?" unless $? == 7 << 8;
print "RESULT ", sha256_hex($h . join(",", map { "$_$seen{$_}" } sort keys %seen)), "\nOK\n";
