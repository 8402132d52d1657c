# The plot of test/bench/announce: reads throughput.dat and latency.dat in the
# directory "area", writes "target".  Each line is a contender:
#
#	throughput.dat	title, and for each condition median, lowest and highest tps
#	latency.dat		title, and for each condition p50 and p99 in ms

set terminal svg size 1200,480 font 'sans-serif,13' background '#ffffff'
set output target
set multiplot layout 1,2
set style fill solid 0.8 border -1
set grid ytics lc rgb '#dddddd'
set border 3
set tics nomirror
set xtics scale 0
set bmargin 4
set key top left reverse Left
set yrange [0:*]
set offsets 0, 0, graph 0.1, 0
set linetype 1 lc rgb '#4878a8'
set linetype 2 lc rgb '#e0a050'
set linetype 3 lc rgb '#283858'
set linetype 4 lc rgb '#a06010'

set title 'Single-row INSERTs per second, '.clients.' clients'
set ylabel 'transactions/s: median, lowest and highest round'
set style data histograms
set style histogram errorbars gap 1 lw 1
plot area.'/throughput.dat' using 2:3:4:xtic(1) title plain, \
	'' using 5:6:7 title slow, \
	'' using ($0 - 0.17):4:(sprintf('%.0f', $2)) with labels offset 0, 0.7 font ',10' notitle, \
	'' using ($0 + 0.17):7:(sprintf('%.0f', $5)) with labels offset 0, 0.7 font ',10' notitle

set title 'From INSERT to LISTEN client, idle server'
set ylabel 'milliseconds'
set style histogram clustered gap 1
plot area.'/latency.dat' using 2:xtic(1) title 'median, '.plain, \
	'' using 4 title 'median, '.slow, \
	'' using 3 title 'p99, '.plain, \
	'' using 5 title 'p99, '.slow
unset multiplot
