# The plot of test/bench/scale: reads NAME.dat in the directory "area", writes
# "target".  Each line is a contender: the number of handlers or events, then median,
# lowest and highest of the rounds.  Only files of the parts in "parts" exist.

set terminal svg size 1400,900 font 'sans-serif,13' background '#ffffff'
set output target
set multiplot layout 2,3
set style fill solid 0.8 border -1
set grid ytics lc rgb '#dddddd'
set border 3
set tics nomirror
set xtics scale 0
set bmargin 4
set yrange [0:*]
set offsets 0, 0, graph 0.1, 0
set linetype 1 lc rgb '#4878a8'
set style data histograms
set style histogram errorbars gap 1 lw 1

names = 'handlers matching old_emit old_drain old_latency'
part(name) = strstrt(name, 'old_') == 1 ? 'old' : name
array titles[5] = ['Drain of '.events.' events, each for one handler', \
	'Calls, each event for all handlers', \
	'Single-row INSERTs, '.clients.' clients', \
	'Drain of '.events.' new events', \
	'From the INSERT to the handler, p50']
array xlabels[5] = ['handlers', 'handlers', 'old events', 'old events', 'old events']
array ylabels[5] = ['events/s', 'us a call', 'transactions/s', 'events/s', 'ms']
do for [i=1:5] {
	if (strstrt(parts, part(word(names, i))) > 0) {
		set title titles[i]
		set xlabel xlabels[i]
		set ylabel ylabels[i].': median, lowest and highest round'
		plot area.'/'.word(names, i).'.dat' using 2:3:4:xtic(1) notitle, \
			'' using 0:4:(sprintf(i == 2 || i == 5 ? '%.2f' : '%.0f', $2)) with labels offset 0, 0.7 font ',10' notitle
	}
}
unset multiplot
