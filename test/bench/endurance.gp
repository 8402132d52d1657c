# The plot of test/bench/endurance: reads held.dat and memory.dat in the directory
# "area", writes "target".  "parts" names the parts to draw.
#
#	held.dat	a line for each minute: its number, p99 of transactions and of the
#				handler in ms, size of _event_handler_progress in kB, p99 of
#				transactions without a trigger in ms
#	memory.dat	a line for each portion of events: the number of events so far, kB
#				of launcher, listener and executor

held = strstrt(parts, 'held') > 0
memory = strstrt(parts, 'memory') > 0

set terminal svg size 480 * (2 * held + memory),480 font 'sans-serif,13' background '#ffffff'
set output target
set multiplot layout 1,2 * held + memory
set grid ytics lc rgb '#dddddd'
set border 3
set tics nomirror
set bmargin 4
set yrange [0:*]
set offsets 0, 0, graph 0.3, 0
set key top left reverse Left
set linetype 1 lc rgb '#4878a8' lw 2 pt 7 ps 0.5
set linetype 2 lc rgb '#e0a050' lw 2 pt 7 ps 0.5
set linetype 3 lc rgb '#283858' lw 2 pt 7 ps 0.5
set style data linespoints
set datafile missing '-'

if (held) {
	set xlabel 'minute, of '.minute.' s'
	set ylabel 'p99, milliseconds'
	set title 'Two open transactions, '.rate.' INSERTs/s'
	plot area.'/held.dat' using 1:2 title 'INSERT', '' using 1:5 title 'without a trigger', '' using 1:3 title 'from creation to handler'
	set ylabel 'MB'
	set title 'Size of \_event\_handler\_progress'
	plot area.'/held.dat' using 1:($4 / 1024) notitle
}
if (memory) {
	set xlabel 'events of 1 kB'
	set ylabel 'MB of its own'
	set title 'Memory of workers'
	set format x '%.1s%c'
	plot area.'/memory.dat' using 1:($2 / 1024) title 'launcher', '' using 1:($3 / 1024) title 'listener', \
		'' using 1:($4 / 1024) title 'executor'
}
unset multiplot
