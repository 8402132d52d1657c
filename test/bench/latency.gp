# The plot of test/bench/latency: reads latency.dat in the directory "area",
# writes "target".  Each line is a contender: title, then median, lowest and highest
# of the rounds, in ms, first for p50, then for p99.

set terminal svg size 700,480 font 'sans-serif,13' background '#ffffff'
set output target
set style fill solid 0.8 border -1
set grid ytics lc rgb '#dddddd'
set border 3
set tics nomirror
set xtics scale 0
set bmargin 4
set key top left reverse Left
set yrange [0:*]
set offsets 0, 0, graph 0.2, 0
set linetype 1 lc rgb '#4878a8'
set linetype 2 lc rgb '#e0a050'
set style data histograms
set style histogram errorbars gap 1 lw 1
set ylabel 'ms: median, lowest and highest round'
set title 'From the INSERT to handler or client, idle server, '.rate.' a second'
plot area.'/latency.dat' using 2:3:4:xtic(1) title 'p50', \
	'' using 5:6:7 title 'p99', \
	'' using ($0 - 0.17):4:(sprintf('%.2f', $2)) with labels offset 0, 0.7 font ',10' notitle, \
	'' using ($0 + 0.17):7:(sprintf('%.2f', $5)) with labels offset 0, 0.7 font ',10' notitle
